"""What was measured, and how sensors fail. numpy only: no torch, no Lightning, no devkit."""

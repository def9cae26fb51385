"""What is fast and what is not. A package, since pyarrow brings one of this name, which would hide a mere folder."""

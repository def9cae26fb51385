"""What is computed, trained and scored: encoders, router, trunk, heads, tasks, reports."""

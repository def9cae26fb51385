"""What is fast and what is not, measured. A package, since pyarrow brings one of the same name that would hide a folder."""

"""What is remembered: one SQLite file and content-addressed files. Imports nothing else of this project."""

"""What a run would meet in its middle, looked for before its first step."""

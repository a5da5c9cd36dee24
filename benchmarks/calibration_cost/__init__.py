"""What calibrating adds to plain sampling, and what planning and cutting take afterwards."""

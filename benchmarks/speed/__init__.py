"""How much faster slim denoisers are, and what slimming for time is worth."""

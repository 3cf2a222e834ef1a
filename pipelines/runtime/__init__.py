"""What every job stands on: how it starts and ends, its run directory, its config and inputs, its Ray and its log."""

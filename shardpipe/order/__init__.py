"""Position <-> sample, and which samples form a batch: pure, numpy only."""

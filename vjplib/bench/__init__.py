"""Rules timed beside what users would otherwise call, training steps of networks, and random convolutions."""

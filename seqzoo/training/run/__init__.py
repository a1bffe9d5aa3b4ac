"""A run as a thing on disk and on devices: its folder, checkpoints, metrics, signals, processes, profiles and throughput."""

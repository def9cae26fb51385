"""How it is read, corrupted and fed: nuScenes frames, faults in the loader, batches, the synthetic town."""

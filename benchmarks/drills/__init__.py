"""The main job under conditions that it has to survive."""

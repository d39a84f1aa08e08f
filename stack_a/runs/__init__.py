"""What a run is and does: decisions in pure functions (`plan`, `journal`), acts in thin ones."""

"""What every training needs: schedules, optimisers, checkpoints, the run directory, processes."""

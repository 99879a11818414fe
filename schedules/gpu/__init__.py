"""What schedules of all GPU targets share."""

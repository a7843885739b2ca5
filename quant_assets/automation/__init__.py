"""Jobs, schedules, sensors and asset checks."""

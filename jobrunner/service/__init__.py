"""What jobrunner does, one method a use case. Knows neither HTTP nor command lines."""

from hypothesis import HealthCheck, settings

# A shared machine may pause any test; a promise about values should not fail for that.
settings.register_profile("repository", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repository")

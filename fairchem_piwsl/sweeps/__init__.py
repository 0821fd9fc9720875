"""`piwsl sweep`: searches of settings that survive preemption."""

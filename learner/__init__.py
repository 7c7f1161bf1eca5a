"""What learns: training, policies, evaluation, the gate, the schedule and the worker."""

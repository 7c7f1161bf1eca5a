"""What a round does so that earlier tasks are not forgotten: one file per method, all under one interface."""

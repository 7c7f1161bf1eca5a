"""How smol-llava, the embedded base model, was made: pictures, training, evaluation, and what is shipped of it."""

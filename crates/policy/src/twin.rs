//! A second evaluator, obvious and slow: to be compared with the compiled one.

//! Training runs on the bundled model: the CPU's curve, and what must not change.

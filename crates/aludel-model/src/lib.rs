//! Runs decoder-only language models forward and backward.

//! Reads YAML documents whose every part has a place, and says what is wrong with them.

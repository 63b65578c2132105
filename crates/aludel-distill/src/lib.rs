//! Distils a teacher model into a student.

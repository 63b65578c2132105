//! Expands a leading `~/`, as shells do, in paths that no shell has seen.
//!
//! In: a path as a person wrote it in a document. Out: the path. It looks at no disk; `~name/` is no user's folder here but a plain name.

use std::path::{Path, PathBuf};

/// The path, with a leading `~/` replaced by the user's home folder, where there is one.
pub fn expand_home(path: &str) -> PathBuf {
    expand(path, std::env::home_dir().as_deref())
}

fn expand(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = Some(Path::new("/home/u"));
        assert_eq!(expand("~/m/x", home), PathBuf::from("/home/u/m/x"));
        assert_eq!(expand("~/m/x", None), PathBuf::from("~/m/x"));
        for other in ["a/~/x", "~u/x", "~"] {
            assert_eq!(expand(other, home), PathBuf::from(other));
        }
    }
}

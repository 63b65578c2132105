//! Checks names that come from files before they become paths.
//!
//! A name passes when it stays inside its folder on every platform; whether the file exists is not asked here.

/// Says why `name` is no plain file name, or nothing when it is one.
pub(crate) fn fault_of_plain_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name == "." || name == ".." {
        Some("it means a folder")
    } else if name.contains(['/', '\\', ':']) {
        Some("it contains a path separator")
    } else if name.contains(char::is_control) {
        Some("it contains a control character")
    } else {
        None
    }
}

/// Says why `name` is no path inside a folder, which may lie in subfolders, parted by `/`; nothing when it is one.
pub fn fault_of_relative_name(name: &str) -> Option<&'static str> {
    name.split('/').find_map(fault_of_plain_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for name in ["", ".", "..", "/etc/passwd", "../x", "a/b", "a\\b", "C:x", "a\0b", "a\nb"] {
            assert!(fault_of_plain_name(name).is_some(), "{name:?}");
        }
        for name in ["model.safetensors", "model-00001-of-00002.safetensors", "..a", "été.json"] {
            assert_eq!(fault_of_plain_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn relative_names_may_have_subfolders_but_not_climb() {
        assert_eq!(fault_of_relative_name("additional_chat_templates/tool.jinja"), None);
        for name in ["a/../b", "/a", "a//b", "a/", "a/.."] {
            assert!(fault_of_relative_name(name).is_some(), "{name:?}");
        }
    }
}

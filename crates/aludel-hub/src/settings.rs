//! Reads what the environment says of the hub, in the words of Python's `huggingface_hub`.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where the hub is and how it is asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The folder of the cache; `None` where the system has no folder for the user.
    pub cache: Option<PathBuf>,
    /// Says who asks.
    pub token: Option<String>,
    /// Whether the network must not be used.
    pub is_offline: bool,
}

impl Settings {
    /// Those of this process's environment.
    pub fn from_environment() -> Self {
        Self::from_variables(&|name| std::env::var_os(name), std::env::home_dir())
    }

    /// Those of variables.
    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, user: Option<PathBuf>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name)?.into_string().ok();
        let cache =
            || set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(user.clone()?.join(".cache")));
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| Some(cache()?.join("huggingface")));
        let hub = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.clone()?.join("hub")));
        let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let stored = || std::fs::read_to_string(file?).ok();
        let token = text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        Self {
            endpoint: text("HF_ENDPOINT")
                .map_or_else(|| ENDPOINT.into(), |it| it.trim_end_matches('/').to_owned()),
            cache: hub,
            token: token.filter(|token| is_token(token)),
            is_offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .iter()
                .any(|name| text(name).is_some_and(|it| is_true(&it))),
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, cache, is_offline, .. } = self;
        write!(f, "Settings {{ endpoint: {endpoint:?}, cache: {cache:?}, is_offline: {is_offline} }}")
    }
}

/// Whether a text can stand in a header.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_true(text: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&text.to_ascii_lowercase().as_str())
}

const ENDPOINT: &str = "https://huggingface.co";

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Settings::from_variables(&find, Some(PathBuf::from("/home/u")))
    }

    #[test]
    fn the_cache_is_pythons() {
        let cache = |variables: &[(&str, &str)]| settings(variables).cache.unwrap();
        assert_eq!(cache(&[]), PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c")]), PathBuf::from("/c/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h")]), PathBuf::from("/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/x")]), PathBuf::from("/x"));
        assert_eq!(Settings::from_variables(&|_| None, None).cache, None);
    }

    #[test]
    fn endpoint_token_and_offline_come_from_variables() {
        assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
        assert_eq!(settings(&[("HF_ENDPOINT", "http://h:1/")]).endpoint, "http://h:1");
        assert_eq!(settings(&[("HF_TOKEN", " hf_x\n")]).token.as_deref(), Some("hf_x"));
        assert_eq!(settings(&[("HF_TOKEN", "a b")]).token, None);
        assert!(settings(&[("HF_HUB_OFFLINE", "1")]).is_offline);
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).is_offline);
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", settings(&[("HF_TOKEN", "secret")])).contains("secret"));
    }
}

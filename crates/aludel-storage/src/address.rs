//! Parses addresses of object storage.
//!
//! In: text. Out: a bucket and a prefix. What does not begin as an address is a path, and none of this module's.

use std::fmt;

use crate::error::Error;

/// A place in object storage: all objects whose names begin with the prefix and a slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    prefix: String,
}

const SCHEME: &str = "s3://";

impl Address {
    /// The address in a text; `None` for a text that is a path.
    ///
    /// # Errors
    /// [`Error::Address`]: it begins as an address, and is none.
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        let Some(rest) = text.strip_prefix(SCHEME) else { return Ok(None) };
        let fault = |detail: &str| Error::Address { text: text.to_owned(), detail: detail.to_owned() };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if bucket.len() < 3 || bucket.len() > 63 || !bucket.chars().all(is_plain) {
            return Err(fault("a bucket's name has 3 to 63 lower-case letters, digits, hyphens and dots"));
        }
        let prefix = prefix.trim_matches('/');
        if prefix.split('/').any(|part| part == "." || part == "..") || prefix.contains("//") {
            return Err(fault("its prefix has a part that is empty, `.` or `..`"));
        }
        // Names that every storage and every tool takes as they stand.
        let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_./ =+@:,()!".contains(c);
        if prefix.len() > 900 || !prefix.chars().all(is_safe) {
            return Err(fault(
                "its prefix is too long, or has characters other than letters, digits, spaces and -_.=+@:,()!",
            ));
        }
        Ok(Some(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix, without slashes at its ends.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of an object for a file under this prefix.
    pub(crate) fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{SCHEME}{}{slash}{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        assert_eq!(Address::parse("caches/teacher").unwrap(), None);
        assert_eq!(Address::parse("/s3://x").unwrap(), None);
        for (text, bucket, prefix, shown) in [
            ("s3://my-bucket", "my-bucket", "", "s3://my-bucket"),
            ("s3://my-bucket/", "my-bucket", "", "s3://my-bucket"),
            ("s3://my.bucket/a b/c/", "my.bucket", "a b/c", "s3://my.bucket/a b/c"),
        ] {
            let address = Address::parse(text).unwrap().unwrap();
            assert_eq!(
                (address.bucket(), address.prefix(), address.to_string().as_str()),
                (bucket, prefix, shown)
            );
        }
        let address = Address::parse("s3://bucket/a").unwrap().unwrap();
        assert_eq!(address.key("x"), "a/x");
    }

    #[test]
    fn what_begins_as_an_address_and_is_none_is_refused() {
        for text in [
            "s3://",
            "s3://a",
            "s3:///x",
            "s3://Bucket/x",
            "s3://user:key@host/x",
            "s3://bucket/../x",
            "s3://bucket/a//b",
            "s3://bucket/a\nb",
        ] {
            assert!(matches!(Address::parse(text), Err(Error::Address { .. })), "{text}");
        }
    }
}

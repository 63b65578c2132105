//! Reads from the environment where the storage is and who asks.
//!
//! In: variables, by the names that AWS's own programs have for them. Out: what a client needs, or the variable that is missing. Files of
//! profiles are not read. The metadata service of a cloud's machine is asked only where the environment allows it by name: elsewhere nobody
//! answers, and the waiting would tell nothing.

use std::collections::BTreeMap;

use crate::address::Address;
use crate::error::Error;

/// Where the storage is.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The endpoint as the environment has it; none for AWS's own.
    pub(crate) endpoint: Option<String>,
}

/// Any of these says who asks.
const CREDENTIALS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
];

impl Settings {
    pub(crate) fn read(address: &Address, variables: &BTreeMap<String, String>) -> Result<Self, Error> {
        let variable = |name: &str| variables.get(name).filter(|value| !value.trim().is_empty());
        let fault = |detail: String| Error::Settings { address: address.to_string(), detail };
        let is_anonymous =
            variable("AWS_SKIP_SIGNATURE").is_some_and(|value| value == "true" || value == "1");
        let may_ask_metadata = variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value == "false");
        let is_known = CREDENTIALS.iter().any(|name| variable(name).is_some());
        if !is_known && !is_anonymous && !may_ask_metadata {
            return Err(fault(
                "AWS_ACCESS_KEY_ID is not set; set it and AWS_SECRET_ACCESS_KEY (from a profile: `eval \"$(aws configure export-credentials \
                 --format env)\"`), or AWS_SKIP_SIGNATURE=true for a public bucket"
                    .to_owned(),
            ));
        }
        if variable("AWS_ACCESS_KEY_ID").is_some() && variable("AWS_SECRET_ACCESS_KEY").is_none() {
            return Err(fault("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not".to_owned()));
        }
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
        let endpoint = endpoint.iter().find_map(|name| Some((*name, variable(name)?)));
        if let Some((name, url)) = &endpoint {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            if !rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('@')) {
                return Err(fault(format!("{name} is no address such as `http://host:9000`")));
            }
        }
        Ok(Self { endpoint: endpoint.map(|(_, url)| url.trim_end_matches('/').to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let address = Address::parse("s3://bucket/x").unwrap().unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::read(&address, &variables.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = read(&[("AWS_ACCESS_KEY_ID", " ")]).unwrap_err();
        assert!(error.contains("s3://bucket/x") && error.contains("AWS_ACCESS_KEY_ID is not set"), "{error}");
        let error = read(&[("AWS_ACCESS_KEY_ID", "x")]).unwrap_err();
        assert!(error.contains("AWS_SECRET_ACCESS_KEY is not"), "{error}");
        let error = read(&[("AWS_SKIP_SIGNATURE", "true"), ("AWS_ENDPOINT_URL", "host:9000")]).unwrap_err();
        assert!(error.contains("AWS_ENDPOINT_URL is no address"), "{error}");
    }

    #[test]
    fn the_nearest_endpoint_wins() {
        let keys = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")];
        assert_eq!(read(&keys).unwrap().endpoint, None);
        let both = [("AWS_ENDPOINT_URL", "http://a:1/"), ("AWS_ENDPOINT_URL_S3", "https://b/")];
        assert_eq!(read(&[&keys[..], &both[..1]].concat()).unwrap().endpoint.unwrap(), "http://a:1");
        assert_eq!(read(&[&keys[..], &both].concat()).unwrap().endpoint.unwrap(), "https://b");
    }
}

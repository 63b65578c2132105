//! Tests files in object storage: against a small server that plays it, through trouble, and what is said when it fails.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod server;

use std::collections::BTreeMap;
use std::fs;

use aludel_storage::{Address, Error, Object, Storage};
use server::{Bucket, KEY};

const SECRET: &str = "secret-never-shown";

fn with(text: &str, variables: &[(&str, &str)]) -> Result<Storage, Error> {
    let variables: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Storage::with(Address::parse(text).unwrap().unwrap(), &variables)
}

fn open(bucket: &Bucket, text: &str) -> Storage {
    let keys = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ENDPOINT_URL", bucket.endpoint.as_str()),
    ];
    with(text, &keys).unwrap()
}

fn object(name: &str, bytes: u64) -> (String, u64) {
    (name.to_owned(), bytes)
}

/// Names and lengths.
fn listed(storage: &Storage) -> Vec<(String, u64)> {
    storage.list().unwrap().into_iter().map(|Object { name, bytes, .. }| (name, bytes)).collect()
}

#[test]
fn files_are_put_once_and_come_back_whole_and_in_part() {
    let bucket = Bucket::start();
    let storage = open(&bucket, "s3://shelf/some where/cache");
    assert_eq!(listed(&storage), []);
    assert_eq!(storage.length("a").unwrap(), None);
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    assert!(storage.create("a", content.clone()).unwrap());
    assert!(!storage.create("a", b"another".to_vec()).unwrap(), "a file is put there once");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("local"), b"hello").unwrap();
    for name in ["b", "c", "d", "e"] {
        assert!(storage.upload(name, &folder.path().join("local")).unwrap());
    }
    // Names beyond a page of the list, and none of another prefix.
    open(&bucket, "s3://shelf/some where/cache/below").create("x", b"x".to_vec()).unwrap();
    open(&bucket, "s3://shelf/some where/cache-2").create("y", b"y".to_vec()).unwrap();
    let expected = [object("a", 300_000), object("b", 5), object("c", 5), object("d", 5), object("e", 5)];
    assert_eq!(listed(&storage), expected);
    assert_eq!(bucket.names()[0], "some where/cache-2/y");
    assert_eq!(storage.length("a").unwrap(), Some(300_000));
    assert_eq!(storage.range("a", 1000..1010).unwrap(), content[1000..1010]);
    assert_eq!(storage.range("a", 7..7).unwrap(), b"");
    assert!(matches!(storage.range("a", 299_990..300_010), Err(Error::Unreachable { .. })), "past its end");
    let mut seen = 0;
    storage.fetch("a", folder.path(), &mut |bytes| seen = bytes).unwrap();
    assert!(fs::read(folder.path().join("a")).unwrap() == content && seen == 300_000);
    assert!(matches!(storage.fetch("nowhere", folder.path(), &mut |_| {}), Err(Error::Absent { .. })));
    assert_eq!(folder.path().read_dir().unwrap().count(), 2, "nothing half-fetched is left");
    assert_eq!(listed(&open(&bucket, "s3://shelf")), [], "files directly in the bucket");
}

#[test]
fn a_file_of_many_parts_is_seen_when_all_of_it_is_there() {
    let bucket = Bucket::start();
    let storage = open(&bucket, "s3://shelf/model");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    for bytes in [0usize, 5, 8 << 20, (8 << 20) + 1, 20_000_000] {
        let content: Vec<u8> = (0..bytes as u32).map(|n| (n / 3 % 251) as u8).collect();
        fs::write(&path, &content).unwrap();
        let mut told = Vec::new();
        storage.put("w", &path, &mut |bytes| told.push(bytes)).unwrap();
        assert_eq!(told.last(), Some(&(bytes as u64)));
        assert_eq!(told.len(), bytes.div_ceil(8 << 20).max(1));
        bucket.change(|objects| assert!(objects["model/w"] == content, "{bytes} bytes"));
    }
    let version = storage.list().unwrap()[0].version.clone();
    fs::write(&path, "another").unwrap();
    storage.put("w", &path, &mut |_| {}).unwrap();
    assert_ne!(storage.list().unwrap()[0].version, version);
    storage.remove("w").unwrap();
    storage.remove("w").unwrap();
    assert_eq!(bucket.names(), [""; 0]);
    assert!(matches!(storage.put("w", &folder.path().join("none"), &mut |_| {}), Err(Error::Io { .. })));
}

#[test]
fn a_busy_storage_is_asked_again() {
    let bucket = Bucket::start();
    let storage = open(&bucket, "s3://shelf/x");
    bucket.be_busy(2);
    assert!(storage.create("a", b"1".to_vec()).unwrap());
    bucket.be_busy(1);
    assert_eq!(listed(&storage), [object("a", 1)]);
    assert_eq!((bucket.requests("PUT"), bucket.requests("GET")), (3, 2));
}

#[test]
fn failures_name_what_to_do_and_hold_no_secret() {
    let bucket = Bucket::start();
    let stranger = [
        ("AWS_ACCESS_KEY_ID", "AKOTHER"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ENDPOINT_URL", bucket.endpoint.as_str()),
    ];
    let storage = with("s3://shelf/x", &stranger).unwrap();
    let error = storage.list().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(text.contains("AWS_ACCESS_KEY_ID") && text.contains("may list there"), "{text}");
    assert!(
        !format!("{error:?}").contains(SECRET) && !format!("{storage:?}").contains(SECRET),
        "{storage:?}"
    );
    let text = storage.create("a", b"1".to_vec()).unwrap_err().to_string();
    assert!(text.contains("may write there") && text.contains("s3://shelf/x/a"), "{text}");
    let text = open(&bucket, "s3://other-bucket/x").create("a", b"1".to_vec()).unwrap_err().to_string();
    assert!(
        text.contains("s3://other-bucket/x/a is not there") && text.contains("AWS_ENDPOINT_URL"),
        "{text}"
    );
    let text = with("s3://shelf/x", &[]).unwrap_err().to_string();
    assert!(text.contains("AWS_ACCESS_KEY_ID is not set"), "{text}");
    assert_eq!(bucket.names(), [""; 0]);
}

#[test]
fn a_storage_that_is_not_there_is_told_by_its_endpoint() {
    // A port that nobody listens at: it was ours, and is closed.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{free}");
    let variables = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
    ];
    let error = with("s3://shelf/x", &variables).unwrap().list().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unreachable { .. }) && text.contains(&endpoint), "{text}");
}

//! What is read from files, and what is refused with which words.

use super::*;
use crate::error::Error;

fn golden(name: &str) -> PathBuf {
    workspace().join("tests/golden/data").join(name)
}

fn all(rows: &Rows) -> Vec<Record> {
    (0..rows.len()).map(|row| rows.read(row).unwrap()).collect()
}

#[test]
fn parquet_holds_what_json_lines_hold() {
    for name in ["chat", "texts", "pairs"] {
        let read = |ending: &str| {
            let path = golden(&format!("{name}.{ending}"));
            all(&Corpus::open(&settings(&[&path], "")).unwrap().train)
        };
        let (parquet, lines) = (read("parquet"), read("jsonl"));
        assert!(!lines.is_empty());
        assert_eq!(parquet, lines, "{name}");
    }
}

#[test]
fn rows_of_several_files_follow_each_other_and_empty_files_have_none() {
    let folder = Folder::new();
    let (a, b) = (folder.write("a.jsonl", texts(["one", "two"])), folder.write("b.txt", "three\n"));
    let (none, blank) = (folder.write("none.jsonl", ""), folder.write("blank.txt", ""));
    let empty = golden("empty.parquet");
    let files = [&none, &a, &empty, &blank, &b].map(PathBuf::as_path);
    let corpus = Corpus::open(&settings(&files, "")).unwrap();
    let text = |record: &Record| match record {
        Record::Text { text, begins: true, ends: true } => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(all(&corpus.train).iter().map(text).collect::<Vec<_>>(), ["one", "two", "three\n"]);
    assert_eq!((corpus.validation.is_none(), corpus.skipped_count), (true, 0));
    let error = Corpus::open(&settings(&[&none, &blank], "")).unwrap_err().to_string();
    assert_eq!(error, "the data have no row to train on");
}

#[test]
fn a_long_text_is_read_in_passages() {
    let folder = Folder::new();
    let content = "A line of some words.\n".repeat(2000);
    let corpus = Corpus::open(&settings(&[&folder.write("a.txt", &content)], "")).unwrap();
    let records = all(&corpus.train);
    let mut joined = String::new();
    for (at, record) in records.iter().enumerate() {
        let Record::Text { text, begins, ends } = record else { panic!("{record:?}") };
        assert_eq!((*begins, *ends), (at == 0, at + 1 == records.len()));
        joined.push_str(text);
    }
    assert!(records.len() >= 3 && joined == content);
}

#[test]
fn bad_rows_are_refused_with_their_places_or_skipped() {
    let folder = Folder::new();
    let lines = "{\"text\": \"a\"}\n\n{\"txt\": \"b\"}\nnonsense\n{\"text\": \"c\"}\n";
    let a = folder.write("a.jsonl", lines);
    let b = folder.write("b.txt", [b'o', b'k', 0xff]);
    let error = Corpus::open(&settings(&[&a, &b], "")).unwrap_err();
    let expected = format!(
        "{0}:3: the row has neither `text` nor `messages` nor `prompt` with `completion` nor `input_ids` (did you mean `txt`? then \
         write `columns: {{text: txt}}` under `data:`)\n\
         {0}:4: not valid JSON: expected ident at line 1 column 2 (each line is one JSON object)\n\
         {1}:1: not UTF-8 at byte 2 of the file (text files are read as UTF-8: convert it first)",
        a.display(),
        b.display()
    );
    assert_eq!(error.to_string(), expected);
    let corpus = Corpus::open(&settings(&[&a, &b], "bad_rows: skip")).unwrap();
    assert_eq!((corpus.train.len(), corpus.skipped_count, corpus.skipped.len()), (2, 3, 3));

    let many = folder.write("many.jsonl", "x\n".repeat(1000));
    let Err(Error::Rows { problems, count }) = Corpus::open(&settings(&[&many, &a], "")) else { panic!() };
    assert_eq!((problems.len(), count), (20, 1002));
    let words = Error::Rows { problems, count }.to_string();
    assert!(words.ends_with("\nand 982 more rows that cannot be used"), "{words}");
}

#[test]
fn columns_have_the_names_that_they_are_given() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", "{\"body\": \"a\"}\n{\"q\": \"b\", \"a\": \"c\"}\n");
    let corpus =
        Corpus::open(&settings(&[&path], "columns: {text: body, prompt: q, completion: a}")).unwrap();
    let records = all(&corpus.train);
    assert_eq!(records[0], Record::Text { text: "a".into(), begins: true, ends: true });
    assert_eq!(records[1], Record::Completion { prompt: "b".into(), completion: "c".into() });
}

#[test]
fn a_share_for_validation_is_chosen_by_content() {
    let folder = Folder::new();
    let rows: Vec<String> = (0..2000).map(|row| format!("row {}", row % 1000)).collect();
    let path = folder.write("a.jsonl", texts(rows.iter().map(String::as_str)));
    let corpus = Corpus::open(&settings(&[&path], "validation: 10%")).unwrap();
    let (train, kept) = (all(&corpus.train), all(corpus.validation.as_ref().unwrap()));
    assert_eq!(train.len() + kept.len(), 2000);
    assert!(kept.len() % 2 == 0 && (140..260).contains(&kept.len()), "{}", kept.len());
    assert!(kept.iter().all(|record| !train.contains(record)), "equal rows are on one side");
    // More rows do not move those that were there.
    let more = folder.write("b.jsonl", texts(["new"]));
    let larger = Corpus::open(&settings(&[&more, &path], "validation: 10%")).unwrap();
    let larger_kept = all(larger.validation.as_ref().unwrap());
    assert!(kept.iter().all(|record| larger_kept.contains(record)));
    assert_ne!(corpus.fingerprint(), larger.fingerprint());
    let error = Corpus::open(&settings(&[&more], "validation: 0.000001")).unwrap_err().to_string();
    assert_eq!(error, "the data have no row to evaluate on");
}

#[test]
fn a_fingerprint_is_of_the_content_alone() {
    let folder = Folder::new();
    let print = |name: &str, content: &str| {
        Corpus::open(&settings(&[&folder.write(name, content)], "")).unwrap().fingerprint().to_owned()
    };
    let first = print("a.jsonl", &texts(["one", "two"]));
    assert_eq!(first, print("b.jsonl", &texts(["one", "two"])));
    assert_ne!(first, print("c.jsonl", &texts(["one", "twp"])));
    assert_eq!(first.len(), 64);
}

#[test]
fn a_file_that_changed_is_told() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", texts(["one", "two"]));
    let corpus = Corpus::open(&settings(&[&path], "")).unwrap();
    std::fs::write(&path, texts(["other words", "two"])).unwrap();
    let error = corpus.train.read(1).unwrap_err().to_string();
    assert!(error.ends_with("is damaged: row 2 is not what it was"), "{error}");
    std::fs::write(&path, "").unwrap();
    assert!(corpus.train.read(0).unwrap_err().to_string().starts_with("cannot read "));
    let absent = folder.0.path().join("absent.jsonl");
    assert!(Corpus::open(&settings(&[&absent], "")).unwrap_err().to_string().starts_with("cannot read "));
}

#[test]
fn damaged_parquet_is_an_error_and_never_a_panic() {
    let folder = Folder::new();
    let whole = std::fs::read(golden("chat.parquet")).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(41) {
        let mut content = whole.clone();
        content[at] ^= 0x55;
        let path = folder.write("a.parquet", &content);
        refused += u32::from(Corpus::open(&settings(&[&path], "")).is_err());
        let path = folder.write("b.parquet", &whole[..at]);
        let error = Corpus::open(&settings(&[&path], "")).unwrap_err().to_string();
        assert!(error.contains("b.parquet is damaged: "), "{error}");
    }
    assert!(refused > 10, "{refused}");
}

//! Steps: what they hold, that they come in one order, and that they go on from any place.

use std::collections::HashMap;

use aludel_cache::{RecordId, Set};
use aludel_kernels::loss::IGNORED;
use aludel_model::Batch;

use super::*;
use crate::error::Error;

/// Words whose tokens are many, so that documents differ in length.
fn corpus_of(rows: usize) -> String {
    let row = |row: usize| format!("{row}: {}", "the aludel heats é ".repeat(row * row % 11));
    let rows: Vec<String> = (0..rows).map(row).collect();
    texts(rows.iter().map(String::as_str))
}

struct Case {
    rows: Arc<Rows>,
    encoder: Arc<Encoder>,
    settings: StreamSettings,
}

impl Case {
    fn new(content: &str, data: &str, train: &str) -> Self {
        let folder = Folder::new();
        let path = folder.write("a.jsonl", content);
        let run = run(&[&path], data, &format!("train: {{{train}}}\n"));
        let rows = Arc::new(Corpus::open(&run.data).unwrap().train);
        Self { rows, encoder: encoder(&run.data), settings: StreamSettings::training(&run.data, &run.train) }
    }

    fn stream(&self) -> Stream {
        Stream::new(self.rows.clone(), self.encoder.clone(), self.settings)
    }

    fn steps(&self) -> Vec<Step> {
        let mut stream = self.stream();
        std::iter::from_fn(|| stream.next_step().unwrap()).collect()
    }

    /// Every document of the rows, by its tokens.
    fn documents(&self) -> HashMap<Vec<u32>, Vec<u32>> {
        let encode = |row| self.encoder.encode(&self.rows.read(row).unwrap()).unwrap();
        (0..self.rows.len()).map(encode).map(|document| (document.ids, document.labels)).collect()
    }
}

/// The documents of steps with their labels, in order.
fn documents_of(steps: &[Step]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let parts = steps.iter().flat_map(|step| &step.micro_batches);
    let mut documents = Vec::new();
    for part in parts {
        let mut end = 0;
        for rows in &part.batch.documents {
            assert_eq!(rows.start, end, "documents follow each other");
            end = rows.end;
            documents.push((part.batch.ids[rows.clone()].to_vec(), part.labels[rows.clone()].to_vec()));
        }
        assert_eq!((end, end), (part.batch.ids.len(), part.labels.len()));
    }
    documents
}

#[test]
fn every_document_is_in_one_sequence_whole_and_labels_never_cross() {
    let case = Case::new(&corpus_of(40), "sequence_length: 128", "batch_size: 4, micro_batch: 2, epochs: 1");
    let steps = case.steps();
    let expected = case.documents();
    let found = documents_of(&steps);
    assert_eq!(found.len(), 40);
    for (ids, labels) in &found {
        assert_eq!(expected.get(ids), Some(labels));
        assert_eq!(labels.last(), Some(&0), "the last label is the end of its own text");
    }
    for step in &steps {
        let targets: usize = step.micro_batches.iter().map(MicroBatch::targets).sum();
        assert_eq!(step.targets, targets as u64);
        assert!(step.targets > 0 && step.rows <= step.capacity && step.micro_batches.len() <= 2);
        let rows: usize = step.micro_batches.iter().map(|part| part.labels.len()).sum();
        assert_eq!(step.rows, rows as u64);
        assert!(step.micro_batches.iter().all(|part| part.labels.len() <= 2 * 128));
    }
    let (rows, capacity) = steps.iter().fold((0, 0), |sum, step| (sum.0 + step.rows, sum.1 + step.capacity));
    assert!(rows as f64 / capacity as f64 > 0.8, "{rows} of {capacity}");
}

#[test]
fn a_long_document_is_split_without_losing_a_label() {
    let text = "abcdefghijklmnopqrstuvwxyz0123456789";
    let case = Case::new(&texts([text]), "sequence_length: 8, packing: false", "batch_size: 2, epochs: 1");
    let mut ids = tokenizer().encode(text).unwrap();
    ids.push(0);
    let pieces = documents_of(&case.steps());
    assert!(pieces.len() > 2 && pieces.iter().rev().skip(1).all(|(ids, _)| ids.len() == 8));
    let joined: (Vec<u32>, Vec<u32>) =
        pieces.into_iter().fold(Default::default(), |mut all: (Vec<u32>, Vec<u32>), piece| {
            all.0.extend(piece.0);
            all.1.extend(piece.1);
            all
        });
    assert_eq!((joined.0.as_slice(), joined.1.as_slice()), (&ids[..ids.len() - 1], &ids[1..]));
}

#[test]
fn parts_without_anything_to_learn_are_left_out() {
    let prompt = "abcdefghijklmnopqrstuvwxyz0123456789";
    let row = serde_json::json!({"prompt": prompt, "completion": "!"}).to_string();
    let case = Case::new(&row, "sequence_length: 8, packing: false", "batch_size: 1, epochs: 1");
    let steps = case.steps();
    assert_eq!((steps.len(), steps[0].targets), (1, 2));
    assert_eq!(documents_of(&steps)[0].1.iter().filter(|&&label| label != IGNORED).count(), 2);
    assert_eq!(case.stream().count_steps(1).unwrap(), 1);
}

#[test]
fn a_run_goes_on_from_any_place_as_if_it_had_not_stopped() {
    let content = corpus_of(23) + &texts(["", "x"]);
    for (data, train) in [
        ("sequence_length: 64", "batch_size: 3, micro_batch: 3, epochs: 3, seed: 5"),
        ("sequence_length: 16", "batch_size: 2, micro_batch: 1, epochs: 2"),
        ("sequence_length: 16, packing: false", "batch_size: 4, epochs: 2, seed: 1"),
        ("sequence_length: 200, shuffle: false", "batch_size: 1, epochs: 2"),
        ("sequence_length: 32, long_documents: truncate", "batch_size: 5, epochs: 1"),
    ] {
        let case = Case::new(&content, data, train);
        let steps = case.steps();
        assert!(steps.len() > 2, "{data}");
        assert_eq!(steps, case.steps(), "{data}");
        assert_eq!(
            case.stream().count_steps(case.settings.epochs.unwrap()).unwrap(),
            steps.len() as u64,
            "{data}"
        );
        for at in 0..steps.len() {
            // A cursor is kept as JSON.
            let json = serde_json::to_string(&steps[at].cursor).unwrap();
            let cursor: Cursor = serde_json::from_str(&json).unwrap();
            let resumed = Stream::resume(case.rows.clone(), case.encoder.clone(), case.settings, &cursor);
            let mut resumed = resumed.unwrap();
            for step in &steps[at + 1..] {
                assert_eq!(resumed.next_step().unwrap().as_ref(), Some(step), "{data}, after step {at}");
            }
            assert_eq!(resumed.next_step().unwrap(), None);
        }
    }
}

#[test]
fn every_epoch_has_every_document_in_another_order() {
    let case = Case::new(
        &corpus_of(20),
        "sequence_length: 400, packing: false",
        "batch_size: 1, epochs: 3, seed: 9",
    );
    let documents: Vec<Vec<u32>> = documents_of(&case.steps()).into_iter().map(|(ids, _)| ids).collect();
    let sorted = |part: &[Vec<u32>]| {
        let mut part = part.to_vec();
        part.sort();
        part
    };
    let epochs: Vec<&[Vec<u32>]> = documents.chunks(20).collect();
    assert_eq!(epochs.len(), 3);
    assert!(epochs.windows(2).all(|pair| pair[0] != pair[1] && sorted(pair[0]) == sorted(pair[1])));
    let straight = Case::new(&corpus_of(20), "packing: false, shuffle: false", "batch_size: 1, epochs: 1");
    let first = documents_of(&straight.steps()).remove(0).0;
    assert_eq!(first, straight.encoder.encode(&straight.rows.read(0).unwrap()).unwrap().ids);
}

#[test]
fn steps_without_end_begin_the_data_again() {
    let case = Case::new(&corpus_of(5), "sequence_length: 64", "batch_size: 4, steps: 50");
    let mut stream = case.stream();
    let steps: Vec<Step> = (0..50).map(|_| stream.next_step().unwrap().unwrap()).collect();
    assert!(steps.iter().all(|step| step.micro_batches.len() == 4));
    assert!(steps.last().unwrap().cursor.next.epoch > 5);
}

#[test]
fn a_loader_gives_the_steps_of_its_stream() {
    let case = Case::new(&corpus_of(30), "sequence_length: 64", "batch_size: 2, epochs: 2");
    for ahead in [0, 1, 100] {
        let steps: Vec<Step> = Loader::start(case.stream(), ahead).unwrap().map(Result::unwrap).collect();
        assert_eq!(steps, case.steps());
    }
    // One that is dropped early ends its thread.
    let endless = Case::new(&corpus_of(3), "", "batch_size: 1, steps: 5");
    let mut loader = Loader::start(endless.stream(), 2).unwrap();
    assert!(loader.next().unwrap().is_ok());
    drop(loader);
}

#[test]
fn data_without_anything_to_learn_are_refused() {
    let rows = texts(["", ""]);
    for length in ["epochs: 1", "steps: 10"] {
        let case = Case::new(&rows, "", &format!("batch_size: 1, {length}"));
        assert!(matches!(case.stream().next_step(), Err(Error::NoTargets)));
        assert!(matches!(case.stream().count_steps(1), Err(Error::NoTargets)));
    }
    let case = Case::new(&(rows + &texts(["ab"])), "", "batch_size: 9, epochs: 1");
    let steps = case.steps();
    assert_eq!((steps.len(), steps[0].left_out), (1, 2));
}

#[test]
fn a_conversation_that_the_template_refuses_is_refused_or_left_out() {
    let content = "{\"messages\": [{\"role\": \"user\"}]}\n".to_owned() + &texts(["ab"]);
    let case = Case::new(&content, "shuffle: false", "batch_size: 1, epochs: 1");
    let error = case.stream().next_step().unwrap_err().to_string();
    assert!(error.contains("a.jsonl:1: the student's tokenizer has no chat template"), "{error}");
    let mut loader = Loader::start(case.stream(), 1).unwrap();
    assert!(loader.next().unwrap().is_err() && loader.next().is_none());
    let case = Case::new(&content, "shuffle: false, bad_rows: skip", "batch_size: 1, epochs: 1");
    assert_eq!(case.steps().iter().map(|step| step.left_out).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_cursor_of_other_data_is_refused() {
    let case = Case::new(&corpus_of(5), "sequence_length: 64", "batch_size: 1, epochs: 1");
    let origin = |position, start| Origin { epoch: 0, position, start };
    for cursor in [
        Cursor { next: origin(6, 0), ..Cursor::default() },
        Cursor { waiting: vec![vec![origin(9, 0)]], ..Cursor::default() },
        Cursor { waiting: vec![vec![origin(0, 3)]], ..Cursor::default() },
        Cursor { waiting: vec![vec![]], ..Cursor::default() },
        Cursor { waiting: vec![vec![origin(1, 0); 100]], ..Cursor::default() },
    ] {
        let resumed = Stream::resume(case.rows.clone(), case.encoder.clone(), case.settings, &cursor);
        assert!(matches!(resumed, Err(Error::Cursor)), "{cursor:?}");
    }
    let beyond = Cursor { next: origin(0, u64::MAX), ..Cursor::default() };
    let mut stream = Stream::resume(case.rows.clone(), case.encoder.clone(), case.settings, &beyond).unwrap();
    assert!(matches!(stream.next_step(), Err(Error::Cursor)));
}

/// A prompt of four rows that is not learned, and two documents after it.
#[test]
fn the_beginning_of_a_micro_batch_ends_where_something_is_learned() {
    let documents = [[1, 2, 3, 4, 5, 6].as_slice(), &[7, 8, 9], &[10, 11]];
    let piece = |row| RecordId { set: Set::Train, row, start: 0 };
    let micro = MicroBatch {
        batch: Batch::pack(documents),
        labels: [&[IGNORED; 4][..], &[6, 0, 8, 9, 0, 11, 0]].concat(),
        pieces: (0..3).map(piece).collect(),
        aligned: None,
    };
    let short = micro.beginning(2).unwrap();
    assert_eq!(short.batch, Batch::pack([&[1, 2, 3, 4, 5][..]]));
    assert_eq!((short.targets(), short.pieces.len()), (1, 1));
    let longer = micro.beginning(7).unwrap();
    assert_eq!((&*longer.batch.documents, longer.labels[6]), (&[0..6, 6..7][..], 8));
    assert_eq!(longer.pieces, [piece(0), piece(1)]);
    assert_eq!(micro.beginning(11), None);
    assert_eq!(MicroBatch { labels: vec![IGNORED; 11], ..micro }.beginning(1), None);
}

/// A document of its own at the end, of which nothing is learned; the teacher's rows are padded to a number of their own.
#[test]
fn a_padded_micro_batch_learns_the_same() {
    let batch = |rows: usize| Batch::pack([vec![3; rows].as_slice()]);
    let plain = MicroBatch { batch: batch(5), labels: vec![3; 5], ..MicroBatch::default() };
    let padded = plain.padded(&|rows| rows.next_multiple_of(4));
    assert_eq!((padded.batch.rows(), &padded.batch.documents[..]), (8, &[0..5, 5..8][..]));
    assert_eq!((padded.targets(), &padded.labels[5..]), (5, &[IGNORED; 3][..]));
    assert_eq!(plain.padded(&|rows| rows), plain);
    let teacher = MicroBatch { batch: batch(6), labels: vec![3; 6], ..MicroBatch::default() };
    let aligned = Some(Box::new(Aligned { teacher, partners: vec![Some(1); 5] }));
    let padded = MicroBatch { aligned, ..plain }.padded(&|rows| rows.next_multiple_of(4));
    let aligned = padded.aligned.as_ref().unwrap();
    assert_eq!((aligned.teacher.batch.rows(), padded.compared()), (8, 5));
    assert_eq!(aligned.partners.len(), padded.labels.len());
}

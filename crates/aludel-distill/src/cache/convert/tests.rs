//! Holds sources against what DistillKit unpacks from its own captures, and shows them files that lie.

mod exports;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde::Deserialize;

use super::columns::Table;
use super::source::{Source, of_list};

#[derive(Deserialize)]
struct Expected {
    input_ids: Vec<i64>,
    ids: Vec<Vec<i64>>,
    values: Vec<Vec<f64>>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/distillkit").join(name)
}

/// All rows of a source: tokens, ids and values of each position.
fn rows(path: &Path, configuration: Option<&Path>) -> Result<Vec<Expected>, String> {
    let mut source = Source::open(path, configuration).map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    while let Some(input_ids) = source.next_tokens().map_err(|error| error.to_string())? {
        let told = source.told().map_err(|error| error.to_string())?;
        let list = |at| of_list(&told.ids, &told.id_ends, at).to_vec();
        let ids = (0..told.id_ends.len()).map(list).collect();
        let list = |at| of_list(&told.values, &told.value_ends, at).to_vec();
        let values = (0..told.value_ends.len()).map(list).collect();
        rows.push(Expected { input_ids, ids, values });
    }
    Ok(rows)
}

#[test]
fn captures_of_distillkit_are_unpacked_as_it_unpacks_them() {
    for (name, tolerance) in [
        ("recommended", 2e-5),
        ("deltas", 1e-5),
        ("normalized", 1e-12),
        ("bins", 1e-6),
        ("fitted", 1e-5),
        ("fitted-logits", 2e-5),
        ("plain", 0.0),
    ] {
        let expected = fs::read(golden(name).join("expected.json")).unwrap();
        let expected: Vec<Expected> = serde_json::from_slice(&expected).unwrap();
        let got = rows(&golden(name), None).unwrap();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!((&got.input_ids, &got.ids), (&expected.input_ids, &expected.ids), "{name}");
            assert_eq!(got.values.len(), expected.values.len(), "{name}");
            for (got, expected) in got.values.iter().flatten().zip(expected.values.iter().flatten()) {
                let off = (got - expected).abs();
                assert!(off <= tolerance * expected.abs().max(1.0), "{name}: {got} {expected}: {off}");
            }
        }
    }
}

#[test]
fn packed_rows_need_their_own_configuration() {
    let said = |path: &Path, configuration: Option<&Path>| rows(path, configuration).err().unwrap();
    let file = golden("deltas/data_0.parquet");
    assert!(said(&file, None).contains("its rows are packed"), "{}", said(&file, None));
    let older = golden("fitted/compression_config.yaml");
    assert!(said(&file, Some(&older)).contains("its rows are packed"));
    let other = golden("bins/compression_config.yaml");
    let expected = "data_0.parquet:1: token 0: its indices have 23 bytes and its values 33, and the configuration makes 13 and";
    assert!(said(&file, Some(&other)).contains(expected), "{}", said(&file, Some(&other)));
    let own = golden("deltas/compression_config.yaml");
    assert_eq!(rows(&file, Some(&own)).unwrap().len(), 2);
}

/// Bytes of a capture are changed one after another: every change gives other rows or an error, and nothing else.
#[test]
fn no_change_of_a_byte_is_worse_than_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.parquet");
    let mut errors = 0;
    for name in ["plain", "deltas"] {
        let configuration = golden(name).join("compression_config.yaml");
        let configuration = Some(configuration.as_path()).filter(|file| file.is_file());
        let bytes = fs::read(golden(name).join("data_1.parquet")).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&file, &changed).unwrap();
            errors += usize::from(rows(&file, configuration).is_err());
            if at % 7 == 0 {
                fs::write(&file, &bytes[..at]).unwrap();
                assert!(rows(&file, configuration).is_err(), "{name} cut after {at} bytes");
            }
        }
    }
    assert!(errors > 1000, "{errors}");
}

#[test]
fn a_page_that_is_larger_than_any_is_refused_before_room_is_made() {
    let file = crate::data::pages::tests::lying(i32::MAX);
    let error = Table::open(file.path()).err().unwrap().to_string();
    assert!(error.contains("says that it holds 2147483647 bytes"), "{error}");
}

/// One column of a Parquet file.
struct Column<'a> {
    name: &'a str,
    write: &'a dyn Fn(&mut parquet::file::writer::SerializedColumnWriter<'_>),
    shape: &'a str,
}

fn column<T: DataType>(
    values: Vec<T::T>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
) -> impl Fn(&mut parquet::file::writer::SerializedColumnWriter<'_>) {
    move |writer| {
        writer.typed::<T>().write_batch(&values, Some(&definitions), Some(&repetitions)).unwrap();
    }
}

/// A list of lists whose parts may all be missing; `{}` is the type of an element.
const LISTS: &str = "optional group {name} (LIST) {{ repeated group list {{ optional group element (LIST) {{ repeated group list {{ optional {type} element; }} }} }} }}";
const LIST: &str = "optional group {name} (LIST) {{ repeated group list {{ optional {type} element; }} }}";

fn write(path: &Path, columns: &[Column<'_>]) {
    let shape = |column: &Column<'_>| {
        let (kind, element) = column.shape.split_once(' ').unwrap();
        let shape = match kind {
            "lists" => LISTS,
            "list" => LIST,
            _ => "optional {type} {name};",
        };
        shape.replace("{{", "{").replace("}}", "}").replace("{name}", column.name).replace("{type}", element)
    };
    let fields: Vec<String> = columns.iter().map(shape).collect();
    let schema = parse_message_type(&format!("message rows {{ {} }}", fields.join(" "))).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema), Arc::new(WriterProperties::new())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut next = group.next_column().unwrap().unwrap();
        (column.write)(&mut next);
        next.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn columns_of_other_shapes_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.parquet");
    let tokens = column::<Int64Type>(vec![1, 2], vec![3, 3], vec![0, 1]);
    let ids = column::<Int64Type>(vec![1, 2], vec![5, 5], vec![0, 1]);
    let values = column::<DoubleType>(vec![-1.0, -2.0], vec![5, 5], vec![0, 1]);
    let good = [
        Column { name: "input_ids", write: &tokens, shape: "list int64" },
        Column { name: "token_ids", write: &ids, shape: "lists int64" },
        Column { name: "log_probs", write: &values, shape: "lists double" },
    ];
    write(&file, &good);
    let read = rows(&file, None).unwrap();
    assert_eq!((&read[0].ids, &read[0].values), (&vec![vec![1], vec![2]], &vec![vec![-1.0], vec![-2.0]]));
    let said = |at: usize, column: Column<'_>| {
        let [a, b, c] = [&good[0], &good[1], &good[2]].map(|column| Column {
            name: column.name,
            write: column.write,
            shape: column.shape,
        });
        let mut columns = [a, b, c];
        columns[at] = column;
        write(&file, &columns);
        rows(&file, None).err().unwrap_or_else(|| "nothing".to_owned())
    };
    let flat = column::<Int64Type>(vec![1, 2], vec![3, 3], vec![0, 1]);
    let whole = column::<Int32Type>(vec![1, 2], vec![3, 3], vec![0, 1]);
    let text = column::<ByteArrayType>(vec!["a".into(), "b".into()], vec![5, 5], vec![0, 1]);
    let missing_value = column::<Int64Type>(vec![1], vec![5, 4], vec![0, 1]);
    let missing_list = column::<Int64Type>(vec![1], vec![5, 2], vec![0, 1]);
    let missing_row = column::<Int64Type>(vec![], vec![0], vec![0]);
    let fewer = column::<Int64Type>(vec![1], vec![5], vec![0]);
    let real = column::<DoubleType>(vec![1.0, 2.0], vec![3, 3], vec![0, 1]);
    for (at, column, expected) in [
        (
            1,
            Column { name: "token_ids", write: &flat, shape: "list int64" },
            "its column `token_ids` is to be a list of lists in each row, and is a list",
        ),
        (
            0,
            Column { name: "input_ids", write: &ids, shape: "lists int64" },
            "its column `input_ids` is to be a list in each row, and is a list of lists",
        ),
        (
            0,
            Column { name: "input_ids", write: &real, shape: "list double" },
            "rows.parquet:1: `input_ids` are no whole numbers",
        ),
        (
            2,
            Column { name: "log_probs", write: &text, shape: "lists binary" },
            "rows.parquet:1: its log-probabilities are no numbers",
        ),
        (
            1,
            Column { name: "token_ids", write: &missing_value, shape: "lists int64" },
            "rows.parquet:1: column `token_ids`: a value is missing (null)",
        ),
        (
            1,
            Column { name: "token_ids", write: &missing_list, shape: "lists int64" },
            "rows.parquet:1: column `token_ids`: a value is missing (null)",
        ),
        (
            1,
            Column { name: "token_ids", write: &missing_row, shape: "lists int64" },
            "rows.parquet:1: column `token_ids`: a value is missing (null)",
        ),
        (
            0,
            Column { name: "tokens", write: &whole, shape: "list int32" },
            "it has no column `input_ids`, the tokens of each row",
        ),
        (
            1,
            Column { name: "indices", write: &fewer, shape: "lists int64" },
            "the rows have no `token_ids`; their columns are `input_ids`, `indices`, `log_probs`",
        ),
    ] {
        let said = said(at, column);
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

/// A page of a few bytes says that one row has a hundred million equal numbers.
#[test]
fn a_row_of_many_equal_numbers_is_refused_before_it_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.parquet");
    let count = 20 << 20;
    let tokens = column::<Int64Type>(vec![7; count], vec![3; count], {
        let mut levels = vec![1; count];
        levels[0] = 0;
        levels
    });
    let ids = column::<Int64Type>(vec![1], vec![5], vec![0]);
    let values = column::<DoubleType>(vec![-1.0], vec![5], vec![0]);
    write(
        &file,
        &[
            Column { name: "input_ids", write: &tokens, shape: "list int64" },
            Column { name: "token_ids", write: &ids, shape: "lists int64" },
            Column { name: "log_probs", write: &values, shape: "lists double" },
        ],
    );
    assert!(file.metadata().unwrap().len() < 1 << 20);
    let said = rows(&file, None).err().unwrap();
    assert!(said.contains("rows.parquet:1: column `input_ids`:"), "{said}");
    assert!(said.contains("a row has more than 16777216 values in it"), "{said}");
}

#[test]
fn lines_are_rows_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    fs::write(
        &file,
        "{\"input_ids\": [1, 2, 3], \"token_ids\": [[5, 6], [7]], \"log_probs\": [[-1, -2.5], [null]], \"id\": 4}\n\n\
         {\"input_ids\": [4], \"token_ids\": [], \"top_values\": []}\n",
    )
    .unwrap();
    let read = rows(&file, None).unwrap();
    assert_eq!((read.len(), &read[0].input_ids), (2, &vec![1, 2, 3]));
    assert_eq!(read[0].ids, [vec![5, 6], vec![7]]);
    assert_eq!(read[0].values, [vec![-1.0, -2.5], vec![f64::NEG_INFINITY]]);
    for (line, expected) in [
        ("[1]", "rows.jsonl:1: not a row of JSON"),
        ("{\"input_ids\": [1]", "rows.jsonl:1: not a row of JSON"),
        (
            "{\"input_ids\": [1], \"token_ids\": [[1]], \"log_probs\": [[NaN]]}",
            "rows.jsonl:1: not a row of JSON",
        ),
        (
            "{\"input_ids\": [1], \"token_ids\": [[1.5]], \"log_probs\": [[-1]]}",
            "rows.jsonl:1: invalid type: floating point `1.5`, expected i64",
        ),
        (
            "{\"input_ids\": [1], \"token_ids\": [[1]], \"probabilities\": [[1]]}",
            "the rows have no `log_probs`; their columns are `input_ids`, `token_ids`, `probabilities`",
        ),
        (
            "{\"ids\": 1}",
            "the rows have no `input_ids`, `token_ids`, `log_probs`; their columns are `ids` (name the columns `input_ids` (tokens), `token_ids`",
        ),
    ] {
        fs::write(&file, line).unwrap();
        let said = rows(&file, None).err().unwrap();
        assert!(said.contains(expected), "{line}: {said}");
    }
}

#[test]
fn what_is_no_source_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let said = |path: &Path| rows(path, None).err().unwrap();
    assert!(said(folder.path()).contains("holds no .parquet or .jsonl file"));
    fs::write(folder.path().join("dataset_info.json"), "{}").unwrap();
    assert!(
        Source::open(folder.path(), None).is_err_and(|error| format!("{error:?}").contains("to_parquet"))
    );
    let text = folder.path().join("rows.txt");
    fs::write(&text, "a").unwrap();
    assert!(said(&text).contains("neither .parquet nor .jsonl"));
    assert!(said(&folder.path().join("rows.parquet")).contains("cannot read"));
    fs::write(folder.path().join("rows.parquet"), "PAR1").unwrap();
    assert!(said(&folder.path().join("rows.parquet")).contains("is damaged"));
}

//! Checks what must hold for every input: no header makes the reader panic, and every layout is one that readers of the
//! format accept.

use std::fs;

use aludel_checkpoint::{
    Checkpoint, Dtype, Error, Layout, OutputFolder, OutputTensor, WeightMap, element_bytes,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::files::file_bytes;

/// Opens a file of this content; the answer of the format's own crate is the reference.
fn agrees_with_reference(content: &[u8]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, content).unwrap();
    match (Checkpoint::open(&path), SafeTensors::deserialize(content)) {
        (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours.tensors().len(), theirs.len()),
        (Err(Error::Damaged { file, .. }), Err(_)) => prop_assert_eq!(file, path),
        // The one difference: the format wants a brace first, their reader takes white space too.
        (Err(Error::Damaged { detail, .. }), Ok(_)) => {
            let is_white_space = detail.contains("does not begin with");
            prop_assert!(is_white_space);
        }
        (ours, theirs) => prop_assert!(false, "{ours:?} against {theirs:?}"),
    }
    Ok(())
}

fn header_entry() -> impl Strategy<Value = String> {
    let dtype = prop_oneof![Just("F32"), Just("BF16"), Just("U8"), Just("F4"), Just("X")];
    let side = prop_oneof![4 => 0..5u64, 1 => any::<u64>()];
    let offset = || prop_oneof![6 => 0..20u64, 1 => any::<u64>()];
    ("[ab_]{0,2}", dtype, prop::collection::vec(side, 0..3), offset(), offset()).prop_map(
        |(name, dtype, shape, start, end)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        },
    )
}

fn output_tensors() -> impl Strategy<Value = Vec<OutputTensor>> {
    let dtype = prop_oneof![
        Just(Dtype::U8),
        Just(Dtype::F8_E4M3),
        Just(Dtype::BF16),
        Just(Dtype::F16),
        Just(Dtype::F32),
        Just(Dtype::F64),
    ];
    let tensor = (dtype, prop::collection::vec(0..6usize, 0..4));
    prop::collection::vec(tensor, 0..12).prop_map(|tensors| {
        let named = tensors.into_iter().enumerate();
        named
            .map(|(number, (dtype, shape))| OutputTensor { name: format!("é\"{number}"), dtype, shape })
            .collect()
    })
}

/// Bytes that tell every position of every tensor apart well enough.
fn content(tensor: usize, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|position| (tensor as u64 * 37 + position * 11 + 5) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        agrees_with_reference(&content)?;
    }

    #[test]
    fn arbitrary_headers_never_panic(json in "[{}\\[\\]\":,a0-9 ]{0,60}", data in prop::collection::vec(any::<u8>(), 0..9)) {
        agrees_with_reference(&file_bytes(&json, &data))?;
    }

    #[test]
    fn arbitrary_entries_are_judged_as_the_format_judges_them(
        entries in prop::collection::vec(header_entry(), 0..4),
        bytes in 0..20usize,
    ) {
        agrees_with_reference(&file_bytes(&format!("{{{}}}", entries.join(",")), &vec![0; bytes]))?;
    }

    #[test]
    fn layouts_are_disjoint_ordered_and_aligned(tensors in output_tensors(), shard_bytes in 0..400u64) {
        let layout = Layout::plan(tensors.clone(), shard_bytes).unwrap();
        let mut names: Vec<&str> = layout.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        let mut given: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        given.sort_unstable();
        prop_assert_eq!(names, given);

        let mut shard = 0;
        let mut end = layout.shards()[0].header.len() as u64;
        let mut held = 0;
        for (position, tensor) in layout.tensors().iter().enumerate() {
            let placement = layout.placement(position);
            if placement.shard != shard {
                prop_assert_eq!(end, layout.shards()[shard].bytes);
                prop_assert_eq!(placement.shard, shard + 1);
                shard += 1;
                end = layout.shards()[shard].header.len() as u64;
                held = 0;
            }
            prop_assert_eq!(placement.offset, end, "no gap and no overlap");
            prop_assert_eq!(placement.offset % element_bytes(tensor.dtype), 0);
            prop_assert!(held == 0 || placement.bytes == 0 || held + placement.bytes <= shard_bytes);
            end += placement.bytes;
            held += placement.bytes;
        }
        prop_assert_eq!(shard + 1, layout.shards().len());
        prop_assert_eq!(end, layout.shards()[shard].bytes);
        prop_assert!(layout.shards().iter().all(|shard| shard.header.len() % 64 == 0));
        prop_assert_eq!(layout.total_bytes(), layout.shards().iter().map(|shard| shard.bytes).sum::<u64>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_written_is_read_back(tensors in output_tensors(), shard_bytes in 1..300u64, piece in 1..50u64) {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        let layout = Layout::plan(tensors, shard_bytes).unwrap();
        let folder = OutputFolder::create(&target, false).unwrap();
        let writer = folder.shards(&layout).unwrap();
        for tensor in (0..layout.tensors().len()).rev() {
            let placement = layout.placement(tensor);
            for (number, bytes) in content(tensor, placement.bytes).chunks(piece as usize).enumerate() {
                writer.write_at(&placement, number as u64 * piece, bytes).unwrap();
            }
        }
        writer.finish().unwrap();
        if let Some(index) = layout.index_json() {
            folder.write("model.safetensors.index.json", index.as_bytes()).unwrap();
        }
        folder.finish().unwrap();

        let checkpoint = Checkpoint::open(&target).unwrap();
        let map = WeightMap::open(&checkpoint).unwrap();
        prop_assert_eq!(checkpoint.tensors().len(), layout.tensors().len());
        for (position, tensor) in layout.tensors().iter().enumerate() {
            let entry = checkpoint.tensor(&tensor.name).unwrap();
            let placement = layout.placement(position);
            prop_assert_eq!((entry.dtype, &entry.shape), (tensor.dtype, &tensor.shape));
            prop_assert_eq!((entry.file, entry.offset, entry.bytes), (placement.shard, placement.offset, placement.bytes));
            prop_assert_eq!(map.bytes(entry, 0..entry.bytes), content(position, placement.bytes));
        }
        for file in checkpoint.files() {
            let bytes = fs::read(&file.path).unwrap();
            let theirs = SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in theirs.iter() {
                let entry = checkpoint.tensor(name).unwrap();
                prop_assert_eq!(view.data(), map.bytes(entry, 0..entry.bytes));
            }
        }
    }
}

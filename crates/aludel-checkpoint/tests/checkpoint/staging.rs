//! Stages output folders and checks what stands under the target's name after success, failure, and a run that died.

use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{Dtype, Error, Layout, OutputFolder, OutputTensor, Placement, remove_stale};

/// The names in a folder, hidden ones included, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// U8 vectors of these lengths, each in a shard of its own.
fn layout_of(lengths: &[usize]) -> Layout {
    let tensor = |(number, &length): (usize, &usize)| OutputTensor {
        name: number.to_string(),
        dtype: Dtype::U8,
        shape: vec![length],
    };
    Layout::plan(lengths.iter().enumerate().map(tensor).collect(), 1).unwrap()
}

fn kind_is_target_exists(error: &Error, target: &Path) -> bool {
    matches!(error, Error::TargetExists { path, .. } if path == target)
}

#[test]
fn the_folder_appears_whole_and_at_the_end() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("deep/down/out");
    let source = parent.path().join("source.json");
    fs::write(&source, "copied").unwrap();

    let folder = OutputFolder::create(&target, false).unwrap();
    folder.write("config.json", b"{}").unwrap();
    folder.copy_from(&source, "additional_chat_templates/tool.jinja").unwrap();
    assert!(!target.exists());
    assert_eq!(folder.path().parent(), Some(target.parent().unwrap().canonicalize().unwrap().as_path()));
    assert_eq!(folder.finish().unwrap(), target);

    assert_eq!(listing(&target), ["additional_chat_templates", "config.json"]);
    assert_eq!(fs::read(target.join("additional_chat_templates/tool.jinja")).unwrap(), b"copied");
    assert_eq!(listing(target.parent().unwrap()), ["out"], "nothing is left beside it");
}

#[test]
fn a_run_that_fails_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    let folder = OutputFolder::create(&target, false).unwrap();
    folder.write("config.json", b"{}").unwrap();
    let _writer = folder.shards(&layout_of(&[3])).unwrap();
    drop(folder);
    assert_eq!(listing(parent.path()), Vec::<String>::new());
}

#[test]
fn an_empty_target_is_taken() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir(&target).unwrap();
    let folder = OutputFolder::create(&target, false).unwrap();
    folder.write("a", b"1").unwrap();
    folder.finish().unwrap();
    assert_eq!(listing(&target), ["a"]);
}

#[test]
fn a_target_with_content_is_refused_with_the_remedy() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("precious"), "x").unwrap();
    let error = OutputFolder::create(&target, false).unwrap_err();
    assert!(kind_is_target_exists(&error, &target), "{error:?}");
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(listing(parent.path()), ["out"]);
}

#[test]
fn a_target_that_is_a_file_is_refused_even_when_replacing() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    fs::write(&target, "precious").unwrap();
    for replace in [false, true] {
        let error = OutputFolder::create(&target, replace).unwrap_err();
        assert!(kind_is_target_exists(&error, &target), "{error:?}");
    }
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn the_current_folder_and_those_above_it_are_not_replaced() {
    for target in [".", "..", "/"].map(Path::new) {
        let error = OutputFolder::create(target, true).unwrap_err();
        assert!(kind_is_target_exists(&error, target), "{error:?}");
    }
}

#[test]
fn a_replaced_folder_stands_until_the_new_one_is_whole() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("old"), "x").unwrap();

    let folder = OutputFolder::create(&target, true).unwrap();
    folder.write("new", b"y").unwrap();
    assert_eq!(listing(&target), ["old"]);
    drop(folder);
    assert_eq!(listing(&target), ["old"], "a run that fails replaces nothing");

    let folder = OutputFolder::create(&target, true).unwrap();
    folder.write("new", b"y").unwrap();
    folder.finish().unwrap();
    assert_eq!(listing(&target), ["new"]);
    assert_eq!(listing(parent.path()), ["out"]);
}

/// Two runs on one target: the one that ends last must not overwrite the other's output.
#[test]
fn a_target_that_came_to_exist_meanwhile_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    let folder = OutputFolder::create(&target, false).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("theirs"), "x").unwrap();
    let error = folder.finish().unwrap_err();
    assert!(kind_is_target_exists(&error, &target), "{error:?}");
    assert_eq!(listing(&target), ["theirs"]);
    assert_eq!(listing(parent.path()), ["out"]);
}

/// The rename is made to fail after the old folder was moved aside: by removing what was to be renamed.
#[test]
fn the_old_folder_is_restored_when_the_rename_fails() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("old"), "x").unwrap();
    let mut folder = OutputFolder::create(&target, true).unwrap();
    folder.skip_sync();
    fs::remove_dir_all(folder.path()).unwrap();
    let error = folder.finish().unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_eq!(listing(&target), ["old"]);
    assert_eq!(listing(parent.path()), ["out"]);
}

#[test]
#[cfg(unix)]
fn a_target_that_is_a_link_is_followed_and_kept() {
    let parent = tempfile::tempdir().unwrap();
    let real = parent.path().join("elsewhere");
    fs::create_dir_all(&real).unwrap();
    let target = parent.path().join("out");
    std::os::unix::fs::symlink(&real, &target).unwrap();
    let folder = OutputFolder::create(&target, false).unwrap();
    folder.write("a", b"1").unwrap();
    assert_eq!(folder.finish().unwrap(), target);
    assert!(target.symlink_metadata().unwrap().is_symlink());
    assert_eq!(listing(&real), ["a"]);
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = OutputFolder::create(&parent.path().join("out"), false).unwrap();
    let source = parent.path().join("source");
    fs::write(&source, "x").unwrap();
    for name in ["../escaped", "/etc/escaped", "a/../../escaped", "", ".", "..", "a//b", "a\\b", ".lock"] {
        for error in [folder.write(name, b"x").unwrap_err(), folder.copy_from(&source, name).unwrap_err()] {
            assert!(matches!(&error, Error::BadName { name: at, .. } if at == name), "{error:?}");
        }
    }
    assert_eq!(listing(folder.path()), [".lock"]);
}

#[test]
fn a_file_is_written_once() {
    let parent = tempfile::tempdir().unwrap();
    let folder = OutputFolder::create(&parent.path().join("out"), false).unwrap();
    folder.write("a", b"1").unwrap();
    assert!(matches!(folder.write("a", b"2").unwrap_err(), Error::Io { .. }));
}

#[test]
fn staging_folders_of_dead_runs_are_removed_and_no_others() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    // No process has this id: it is above the most that Linux gives out.
    let dead = parent.path().join(".out.partial-4194305");
    let unlocked = parent.path().join(format!(".out.partial-{}", std::process::id() + 1));
    let kept = [".out.partial-", ".out.partial-x", ".other.partial-4194305", "out.partial-4194305"];
    for folder in [&dead, &unlocked] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("model.safetensors"), "half").unwrap();
    }
    // This one's run died with its lock file left: the system has dropped the lock, whatever now has the id.
    fs::write(unlocked.join(".lock"), "").unwrap();
    for name in kept {
        fs::create_dir(parent.path().join(name)).unwrap();
    }
    let alive = OutputFolder::create(&parent.path().join("alive"), false).unwrap();

    drop(OutputFolder::create(&target, false).unwrap());
    assert!(!dead.exists() && !unlocked.exists());
    for name in kept {
        assert!(parent.path().join(name).exists(), "{name}");
    }
    assert_eq!(remove_stale(&parent.path().join("alive")).unwrap(), Vec::<PathBuf>::new());
    assert!(alive.path().exists(), "a locked staging folder is in use");
}

#[test]
fn two_writers_of_one_target_do_not_share_a_staging_folder() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    let first = OutputFolder::create(&target, false).unwrap();
    let error = OutputFolder::create(&target, false).unwrap_err();
    assert!(
        matches!(&error, Error::TargetExists { detail, .. } if detail.contains("another run")),
        "{error:?}"
    );
    assert!(first.path().exists());
}

#[test]
fn shards_hold_what_was_written_whatever_the_order() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    let layout = layout_of(&[4, 3]);
    let folder = OutputFolder::create(&target, false).unwrap();
    let writer = folder.shards(&layout).unwrap();
    let sizes: Vec<u64> = layout
        .shards()
        .iter()
        .map(|shard| folder.path().join(&shard.file_name).metadata().unwrap().len())
        .collect();
    assert_eq!(sizes, layout.shards().iter().map(|shard| shard.bytes).collect::<Vec<_>>(), "pre-sized");
    writer.write_at(&layout.placement(1), 0, b"efg").unwrap();
    writer.write_at(&layout.placement(0), 2, b"cd").unwrap();
    writer.write_at(&layout.placement(0), 0, b"ab").unwrap();
    writer.finish().unwrap();
    folder.finish().unwrap();
    for (shard, data) in layout.shards().iter().zip([&b"abcd"[..], b"efg"]) {
        assert_eq!(fs::read(target.join(&shard.file_name)).unwrap(), [&shard.header, data].concat());
    }
}

/// Where there is a RAM disk: elsewhere threads take turns.
#[cfg(target_os = "linux")]
#[test]
fn what_threads_write_side_by_side_is_what_one_writes() {
    let Ok(parent) = tempfile::tempdir_in("/dev/shm") else { return };
    let lengths = [2_000_003, 40_000_000, 7];
    let layout = layout_of(&lengths);
    let bytes: Vec<u8> = (0..40_000_000u32).map(|at| (at / 3) as u8 ^ (at >> 11) as u8).collect();
    let outputs = ["turns", "side"].map(|name| {
        let folder = OutputFolder::create(&parent.path().join(name), false).unwrap();
        let mut shards = folder.shards(&layout).unwrap();
        if name == "side" {
            shards.write_side_by_side();
            assert!(shards.writes_side_by_side());
        }
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (shards, layout, bytes) = (&shards, &layout, &bytes);
                scope.spawn(move || {
                    for (number, length) in lengths.into_iter().enumerate() {
                        for start in (0..length).step_by(300_001).skip(thread).step_by(8) {
                            let piece = &bytes[start..length.min(start + 300_001)];
                            shards.write_at(&layout.placement(number), start as u64, piece).unwrap();
                        }
                    }
                });
            }
        });
        shards.finish().unwrap();
        folder.finish().unwrap()
    });
    let read = |folder: &PathBuf| {
        let names = listing(folder).into_iter();
        names.map(|name| (fs::read(folder.join(&name)).unwrap(), name)).collect::<Vec<_>>()
    };
    assert!(read(&outputs[0]) == read(&outputs[1]), "the bytes differ");
}

/// More shards than the writer keeps open, visited in turn so that each is opened again.
#[test]
fn many_shards_need_few_open_files() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    let layout = layout_of(&[2; 100]);
    let folder = OutputFolder::create(&target, false).unwrap();
    let writer = folder.shards(&layout).unwrap();
    for offset in 0..2 {
        for tensor in 0..100 {
            writer.write_at(&layout.placement(tensor), offset, &[tensor as u8 + 100 * offset as u8]).unwrap();
        }
    }
    writer.finish().unwrap();
    folder.finish().unwrap();
    for (number, shard) in layout.shards().iter().enumerate() {
        let bytes = fs::read(target.join(&shard.file_name)).unwrap();
        assert_eq!(bytes[shard.header.len()..], [number as u8, number as u8 + 100]);
    }
}

#[test]
fn a_hole_is_never_shipped() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("out");
    let layout = layout_of(&[4, 3]);
    let folder = OutputFolder::create(&target, false).unwrap();
    let writer = folder.shards(&layout).unwrap();
    writer.write_at(&layout.placement(0), 0, b"abcd").unwrap();
    writer.write_at(&layout.placement(1), 0, b"e").unwrap();
    writer.write_at(&layout.placement(1), 2, b"g").unwrap();
    let start = layout.placement(1).offset;
    match writer.finish().unwrap_err() {
        Error::NotAsPlanned { file, detail } => {
            assert!(file.ends_with(&layout.shards()[1].file_name), "{file:?}");
            assert_eq!(detail, format!("bytes {}..{} were never written", start + 1, start + 2));
        }
        other => panic!("{other:?}"),
    }
    let error = folder.finish().unwrap_err();
    assert!(matches!(error, Error::NotAsPlanned { .. }), "{error:?}");
    assert_eq!(listing(parent.path()), Vec::<String>::new());
}

#[test]
fn writes_outside_of_the_plan_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let layout = layout_of(&[4]);
    let folder = OutputFolder::create(&parent.path().join("out"), false).unwrap();
    let writer = folder.shards(&layout).unwrap();
    let placement = layout.placement(0);
    writer.write_at(&placement, 0, b"ab").unwrap();
    let elsewhere = |change: fn(&mut Placement)| {
        let mut changed = placement;
        change(&mut changed);
        changed
    };
    let cases: [(Placement, u64, &[u8]); 7] = [
        (placement, 3, b"xy"),
        (placement, u64::MAX, b"x"),
        (placement, 1, b"x"),
        (elsewhere(|placement| placement.shard = 1), 0, b"x"),
        (elsewhere(|placement| placement.offset = 0), 0, b"x"),
        (elsewhere(|placement| placement.bytes = 1000), 4, b"x"),
        (elsewhere(|placement| placement.offset = u64::MAX), 0, b"x"),
    ];
    for (place, offset, bytes) in cases {
        let error = writer.write_at(&place, offset, bytes).unwrap_err();
        assert!(matches!(error, Error::NotAsPlanned { .. }), "{place:?} {offset}: {error:?}");
    }
    writer.write_at(&placement, 2, b"").unwrap();
    writer.write_at(&placement, 2, b"cd").unwrap();
    writer.finish().unwrap();
}

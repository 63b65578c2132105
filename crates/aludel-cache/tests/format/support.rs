//! Makes headers and rows.

use aludel_cache::{Contents, Header, RecordId, SparseRows, Teacher, TokenizerPrint};
use indexmap::IndexMap;

pub(crate) fn header(contents: Contents) -> Header {
    let sampled = matches!(contents, Contents::Sampled { .. });
    Header {
        version: 1,
        vocabulary: 500,
        temperatures: if sampled { vec![2.0] } else { vec![1.0, 2.0] },
        logits: matches!(contents, Contents::TopK { .. }),
        contents,
        tokenizer: TokenizerPrint { vocabulary: "ab".repeat(32), rules: "cd".repeat(32) },
        data: IndexMap::from([("sequence_length".to_owned(), 64.into())]),
        teacher: Teacher { name: "models/teacher".into(), weights: vec![], url: None },
        shift: 1,
        positions: "restart".into(),
        parts: 1,
        tool: "aludel 0.1.0".into(),
    }
}

pub(crate) fn top_k() -> Contents {
    Contents::TopK { k: 8, resolution: 352 }
}

pub(crate) fn id(row: u64, start: u32) -> RecordId {
    RecordId { row, start, ..RecordId::default() }
}

/// So many rows that look like a teacher's: few columns near to one another, falling probabilities.
pub(crate) fn rows(seed: u64, count: usize) -> SparseRows {
    let mut rows = SparseRows::default();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    for _ in 0..count {
        let mut ids: Vec<u32> = (0..8).map(|_| (next(20) * next(25)) as u32).collect();
        ids.sort_unstable();
        ids.dedup();
        let weights: Vec<f64> = ids.iter().map(|_| (-(next(900) as f64) / 100.0).exp()).collect();
        let tail = next(100) as f64 / 200.0;
        let sum: f64 = weights.iter().sum::<f64>() / (1.0 - tail);
        rows.log_p.extend(weights.iter().map(|weight| (weight / sum).ln() as f32));
        rows.ids.extend(ids);
        rows.ends.push(rows.ids.len());
        rows.tails.extend([tail as f32, (tail.sqrt() * 0.9) as f32]);
        rows.log_sums.push(next(40_000) as f32 / 1024.0);
    }
    rows
}

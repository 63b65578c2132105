//! Packs documents whose every token but the first is learned.

use aludel_distill::data::MicroBatch;
use aludel_kernels::loss::IGNORED;
use aludel_model::Batch;

pub(crate) fn learned(documents: &[Vec<u32>]) -> MicroBatch {
    let batch = Batch::pack(documents.iter().map(Vec::as_slice));
    let mut labels: Vec<u32> = batch.ids[1..].to_vec();
    labels.push(IGNORED);
    for document in &batch.documents {
        labels[document.end - 1] = IGNORED;
    }
    MicroBatch { batch, labels, ..MicroBatch::default() }
}

//! Compares each operation of a device with the CPU's, on random values that bf16 holds exactly.

use std::ops::Range;

use aludel_kernels::element::Element;
use aludel_kernels::loss::{
    Column, Columns, Divergence, IGNORED, Known, LabelTerm, LossDevice, Mode, Objective, Ranked, RowDistance,
    RowLoss, SortedRows, SparseRows, Tail, Target, Term,
};
use aludel_kernels::nn::device::{AsideMoments, AsideUpdate, PIECE_ASIDE};
use aludel_kernels::nn::{
    Accumulate, Activation, Attention, Cpu, Cuda, Device, DeviceError, Direction, Heads, Master, MomentsMut,
    Norm, ParameterUpdate, Product, Rows, Span, StoredMoments, Update,
};

use crate::compare::{Findings, TOLERANCE};

/// That of losses, whose gradients are rounded to bf16 once.
const LOSS_TOLERANCE: f64 = 4e-3;

type Outcome = Result<Vec<(&'static str, Vec<f32>)>, DeviceError>;

/// Runs one piece of code on both devices, and compares what it returns, name by name.
macro_rules! both {
    ($findings:expr, $cpu:expr, $cuda:expr, $name:expr, $tolerance:expr, $run:path $(, $argument:expr)*) => {{
        let name = $name;
        if $findings.is_own(&name) {
            let want: Outcome = $run($cpu $(, $argument)*);
            let got: Outcome = $run($cuda $(, $argument)*);
            for ((part, got), (_, want)) in got?.iter().zip(&want?) {
                $findings.add(&format!("{name} {part}"), got, want, $tolerance);
            }
        }
    }};
}

pub(crate) fn compare(cpu: &Cpu, cuda: &Cuda, findings: &mut Findings) -> Result<(), DeviceError> {
    both!(findings, cpu, cuda, "elementwise", TOLERANCE, elementwise, 1003);
    both!(findings, cpu, cuda, "elementwise", TOLERANCE, elementwise, 70_000);
    for width in [64, 37] {
        both!(findings, cpu, cuda, format!("moved rows {width}"), 0.0, moved_rows, width);
    }
    for (rows, width) in [(37, 576), (300, 64), (50, 2048), (19, 100), (7, 2600), (5, 8192)] {
        for one_plus in [false, true] {
            let name = format!("norm {rows}x{width} {one_plus}");
            both!(findings, cpu, cuda, name, TOLERANCE, norm, Rows { rows, width }, one_plus);
        }
    }
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        both!(findings, cpu, cuda, format!("{activation:?}"), TOLERANCE, gated, activation, 5003);
    }
    for (width, rotated) in [(64, 64), (128, 32)] {
        both!(findings, cpu, cuda, format!("rotate {width} {rotated}"), TOLERANCE, rotate, width, rotated);
    }
    both!(findings, cpu, cuda, "types", 0.0, types);
    both!(findings, cpu, cuda, "embed", TOLERANCE, embed, 96);
    for (rows, inputs, outputs) in [(64, 128, 256), (37, 72, 200), (300, 576, 1536), (33, 24, 203)] {
        for weights in [Element::F32, Element::BF16] {
            let product = Product { rows, inputs, outputs, scale: 0.5 };
            let name = format!("linear {rows}x{inputs}x{outputs} {weights:?}");
            both!(findings, cpu, cuda, name, TOLERANCE, linear, product, weights);
        }
    }
    let plain = Attention { heads: 4, key_heads: 2, width: 64, scale: 0.125, window: None, soft_cap: None };
    let one = 0..300;
    let packed = [0..70, 70..71, 71..200, 200..333];
    for (name, attention, documents) in [
        ("64", plain, std::slice::from_ref(&one)),
        ("64 packed", plain, &packed[..]),
        ("64 one head of keys", Attention { key_heads: 1, ..plain }, &packed[..]),
        ("128", Attention { width: 128, scale: 0.09, ..plain }, &packed[..]),
        ("32", Attention { width: 32, scale: 0.2, ..plain }, &packed[..]),
        ("8", Attention { width: 8, scale: 0.4, ..plain }, &packed[..]),
        ("72", Attention { width: 72, scale: 0.12, ..plain }, &packed[..]),
        ("256", Attention { width: 256, scale: 0.0625, ..plain }, &packed[..]),
        ("64 window 50", Attention { window: Some(50), ..plain }, &packed[..]),
        ("64 window 2", Attention { window: Some(2), ..plain }, &packed[..]),
        ("128 cap", Attention { width: 128, soft_cap: Some(2.0), ..plain }, &packed[..]),
        ("64 window 70 cap", Attention { window: Some(70), soft_cap: Some(3.0), ..plain }, &packed[..]),
    ] {
        both!(findings, cpu, cuda, format!("attention {name}"), TOLERANCE, attend, attention, documents);
    }
    both!(findings, cpu, cuda, "adamw", 1e-5, adamw, 4099);
    both!(findings, cpu, cuda, "adamw8", 1e-3, adamw8, 4099);
    both!(findings, cpu, cuda, "adamw8 aside", 1e-4, adamw8_aside, PIECE_ASIDE + 300);
    both!(findings, cpu, cuda, "adamw of no number", 0.0, adamw_of_no_number, 4099);
    both!(findings, cpu, cuda, "squares", 1e-6, squares, 4099);
    for distance in [RowDistance::MeanSquare, RowDistance::Cosine] {
        both!(findings, cpu, cuda, format!("{distance:?}"), TOLERANCE, distances, distance);
    }
    losses(cpu, cuda, findings)?;
    known_columns(cpu, cuda, findings)?;
    sorted_probabilities(cpu, cuda, findings)
}

fn losses(cpu: &Cpu, cuda: &Cuda, findings: &mut Findings) -> Result<(), DeviceError> {
    let term = |divergence, weight, temperature| Term { divergence, weight, temperature, scale_by_t2: true };
    let every = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::JensenShannon { beta: 0.5 },
        Divergence::JensenShannon { beta: 0.1 },
        Divergence::SkewedForwardKl { lambda: 0.1 },
        Divergence::SkewedReverseKl { lambda: 0.1 },
        Divergence::TotalVariation,
        Divergence::SoftCrossEntropy,
        Divergence::LogitsMse,
    ];
    let mut objectives =
        vec![(String::from("labels"), vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher)];
    for divergence in every {
        objectives.push((format!("{divergence:?}"), vec![term(divergence, 1.0, 1.0)], None, Target::Teacher));
    }
    let mixed =
        vec![term(Divergence::ForwardKl, 0.5, 2.0), term(Divergence::JensenShannon { beta: 0.5 }, 1.0, 1.0)];
    for target in
        [Target::Teacher, Target::InterpolatedLogits { t: 0.4 }, Target::Mixture { a: 0.7, difficulty: 0.5 }]
    {
        let labels = Some(LabelTerm { weight: 0.3 });
        objectives.push((format!("mixed {target:?}"), mixed.clone(), labels, target));
    }
    for (name, terms, labels, target) in objectives {
        let Ok(objective) = Objective::new(terms, labels, target) else { continue };
        for mode in [Mode::Gradient, Mode::Values] {
            let all = |stored| Columns { stored, valid: stored };
            let shapes = [
                (Columns { stored: 1024, valid: 1001 }, Columns { stored: 960, valid: 950 }),
                (Columns { stored: 40_960, valid: 40_001 }, all(40_000)),
                (all(1003), all(1003)),
                (all(131_072), all(131_072)),
            ];
            // What is only measured is looked at in the same ways.
            let count = if mode == Mode::Gradient { 4 } else { 2 };
            for (student, teacher) in shapes.into_iter().take(count) {
                let name = format!("loss {name} {mode:?} {}", student.stored);
                both!(findings, cpu, cuda, name, LOSS_TOLERANCE, loss, &objective, mode, student, teacher);
            }
        }
    }
    Ok(())
}

fn known_columns(cpu: &Cpu, cuda: &Cuda, findings: &mut Findings) -> Result<(), DeviceError> {
    let term = |divergence, temperature| Term { divergence, weight: 0.7, temperature, scale_by_t2: true };
    let labels = Some(LabelTerm { weight: 0.3 });
    let tails = [Tail::Bucket, Tail::Renormalize, Tail::Ignore].map(Known::Likeliest);
    let divergences = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::JensenShannon { beta: 0.5 },
        Divergence::SkewedForwardKl { lambda: 0.1 },
        Divergence::SkewedReverseKl { lambda: 0.1 },
        Divergence::TotalVariation,
        Divergence::SoftCrossEntropy,
        Divergence::LogitsMse,
    ];
    let likeliest = tails.into_iter().flat_map(|known| divergences.map(|divergence| (known, divergence)));
    let drawn =
        [Divergence::ForwardKl, Divergence::SoftCrossEntropy].map(|divergence| (Known::Drawn, divergence));
    for (known, divergence) in likeliest.chain(drawn) {
        for mode in [Mode::Gradient, Mode::Values] {
            let count = if mode == Mode::Gradient { 2 } else { 1 };
            for (labels, stored) in [(labels, 1003), (None, 49_152)].into_iter().take(count) {
                let temperatures = if known == Known::Drawn { vec![1.0] } else { vec![1.0, 2.0] };
                let terms = temperatures.iter().map(|&temperature| term(divergence, temperature)).collect();
                let Ok(objective) = Objective::new(terms, labels, Target::Teacher) else { continue };
                let name = format!("{known:?} {divergence:?} {mode:?} {stored}");
                both!(
                    findings,
                    cpu,
                    cuda,
                    name,
                    LOSS_TOLERANCE,
                    sparse,
                    &objective,
                    mode,
                    stored,
                    (known, &temperatures)
                );
            }
        }
    }
    Ok(())
}

fn sorted_probabilities(cpu: &Cpu, cuda: &Cuda, findings: &mut Findings) -> Result<(), DeviceError> {
    let term = |temperature| Term {
        divergence: Divergence::SortedDistance,
        weight: 0.7,
        temperature,
        scale_by_t2: true,
    };
    for mode in [Mode::Gradient, Mode::Values] {
        for (labels, temperatures) in [(None, vec![1.0]), (Some(LabelTerm { weight: 0.5 }), vec![2.0, 1.0])] {
            let terms = temperatures.iter().map(|&temperature| term(temperature));
            let Ok(objective) = Objective::new(terms.collect(), labels, Target::Teacher) else { continue };
            let known = [Tail::Bucket, Tail::Renormalize, Tail::Ignore].map(Source::Known);
            let sources =
                [Source::Logits(1500), Source::Logits(800), Source::Nowhere].into_iter().chain(known);
            for (source, stored) in
                sources.map(|source| (source, 1003)).chain([(Source::Logits(32_000), 49_152)])
            {
                let name = format!("sorted {source:?} {mode:?} {} {stored}", objective.terms().len());
                both!(findings, cpu, cuda, name, LOSS_TOLERANCE, sorted, &objective, mode, stored, source);
            }
        }
    }
    Ok(())
}

/// Values around zero, each exact in bf16, the same for the same seed.
fn values(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let value = |_| (0..4).map(|_| next() - 0.5).sum::<f32>() * size;
    (0..len).map(value).map(|value| half::bf16::from_f32(value).to_f32()).collect()
}

/// Activations.
fn given<D: Device>(device: &D, values: &[f32]) -> Result<D::Buffer, DeviceError> {
    of_type(device, values, device.activation())
}

pub(crate) fn of_type<D: Device>(
    device: &D,
    values: &[f32],
    element: Element,
) -> Result<D::Buffer, DeviceError> {
    let mut buffer = device.zeros(values.len(), element)?;
    device.write(&mut buffer, 0, values)?;
    Ok(buffer)
}

fn all<D: Device>(device: &D, buffer: &D::Buffer) -> Result<Vec<f32>, DeviceError> {
    device.read(buffer, 0..device.len(buffer))
}

fn elementwise<D: LossDevice>(device: &D, len: usize) -> Outcome {
    let x = given(device, &values(1, len, 2.0))?;
    let mut y = given(device, &values(2, len, 2.0))?;
    device.add(&x, 0.5, &mut y);
    let added = all(device, &y)?;
    device.scale(&mut y, 3.0);
    let mut copy = device.zeros(len, Element::F32)?;
    device.copy(&y, &mut copy);
    device.add(&x, -1.0, &mut copy);
    let copied = all(device, &copy)?;
    device.soft_cap(1.5, &mut y);
    let capped = all(device, &y)?;
    device.fill(&mut y, 0.25);
    device.copy_rows(&copy, 1, &mut y, 2, Rows { rows: 3, width: 5 });
    let filled = all(device, &y)?;
    let shape = Rows { rows: len / 17, width: 17 };
    let part = values(4, shape.rows * 17, 1.0);
    let (x, mut y) = (given(device, &part)?, given(device, &part)?);
    let mut sums = device.zeros(shape.rows, Element::F32)?;
    device.row_energies(shape, &x, &mut sums);
    device.add_rows(shape, &sums, &x, &mut y);
    Ok(vec![
        ("add", added),
        ("copy", copied),
        ("soft cap", capped),
        ("fill", filled),
        ("energies", all(device, &sums)?),
        ("add rows", all(device, &y)?),
    ])
}

/// Of rows that are neighbours and that are not, of a width for eight at once and another, to another type and back.
fn moved_rows<D: Device>(device: &D, width: usize) -> Outcome {
    let x = of_type(device, &values(1, 12 * width, 2.0), Element::F32)?;
    let mut outcome = Vec::new();
    for (name, back, rows) in
        [("apart", "apart back", &[7, 2, 3, 11][..]), ("together", "together back", &[5, 6, 7])]
    {
        let mut taken = given(device, &vec![0.0; rows.len() * width])?;
        device.gather_rows(&x, rows, width, &mut taken);
        let mut y = of_type(device, &values(2, 12 * width, 2.0), Element::F32)?;
        device.scatter_rows(&taken, rows, width, &mut y);
        outcome.extend([(name, all(device, &taken)?), (back, all(device, &y)?)]);
    }
    Ok(outcome)
}

/// Numbers of every size, ties, and what does not fit, as each type has them.
fn types<D: Device>(device: &D) -> Outcome {
    let scaled = values(1, 2003, 2.0).into_iter().enumerate();
    let mut all_values: Vec<f32> =
        scaled.map(|(at, value)| value * 2.0f32.powi(at as i32 % 40 - 26) * (1.0 + f32::EPSILON)).collect();
    all_values.extend([0.0, -0.0, 1.0, 65_504.0, 65_519.9, 2.0f32.powi(-25), 3e-8]);
    let x = of_type(device, &all_values, Element::F32)?;
    let stored = |element| {
        let mut y = device.zeros(all_values.len(), element)?;
        device.copy(&x, &mut y);
        let mut back = device.zeros(all_values.len(), Element::F32)?;
        device.copy(&y, &mut back);
        all(device, &back)
    };
    Ok(vec![("f16", stored(Element::F16)?), ("bf16", stored(Element::BF16)?), ("f32", stored(Element::F32)?)])
}

fn norm<D: Device>(device: &D, shape: Rows, one_plus: bool) -> Outcome {
    let len = shape.rows * shape.width;
    let norm = Norm { epsilon: 1e-5, one_plus };
    let x = given(device, &values(1, len, 2.0))?;
    let dy = given(device, &values(2, len, 1.0))?;
    let weight = of_type(device, &values(3, shape.width, 1.0), Element::F32)?;
    let mut y = given(device, &vec![0.0; len])?;
    let mut rstd = device.zeros(shape.rows, Element::F32)?;
    device.rms_norm(norm, shape, &x, &weight, &mut y, &mut rstd);
    let mut dx = given(device, &values(4, len, 1.0))?;
    let mut d_weight = of_type(device, &values(5, shape.width, 1.0), Element::F32)?;
    let (add, gradient) = (Accumulate::Add, Some(&mut d_weight));
    device.rms_norm_backward(norm, shape, &x, &weight, &rstd, &dy, &mut dx, add, gradient);
    Ok(vec![
        ("y", all(device, &y)?),
        ("rstd", all(device, &rstd)?),
        ("dx", all(device, &dx)?),
        ("d_weight", all(device, &d_weight)?),
    ])
}

fn gated<D: Device>(device: &D, activation: Activation, len: usize) -> Outcome {
    let mut gate = given(device, &values(1, len, 4.0))?;
    let mut up = given(device, &values(2, len, 2.0))?;
    let mut dy = given(device, &values(3, len, 1.0))?;
    let mut y = given(device, &vec![0.0; len])?;
    device.gated(activation, &gate, &up, &mut y);
    device.gated_backward(activation, &mut dy, &mut gate, &mut up);
    Ok(vec![
        ("y", all(device, &y)?),
        ("y again", all(device, &dy)?),
        ("d_gate", all(device, &gate)?),
        ("d_up", all(device, &up)?),
    ])
}

fn rotate<D: Device>(device: &D, width: usize, rotated: usize) -> Outcome {
    let shape = Heads { rows: 7, heads: 3, width };
    let table = |f: fn(f32) -> f32| (0..20 * rotated / 2).map(|at| f(at as f32)).collect::<Vec<_>>();
    let cos = of_type(device, &table(f32::cos), Element::F32)?;
    let sin = of_type(device, &table(f32::sin), Element::F32)?;
    let positions = device.indices(&[3, 0, 1, 19, 5, 5, 2])?;
    let mut x = given(device, &values(1, 7 * 3 * width, 2.0))?;
    device.rotate(Direction::Forward, shape, rotated, &cos, &sin, &positions, &mut x);
    let turned = all(device, &x)?;
    let mut x = given(device, &values(2, 7 * 3 * width, 2.0))?;
    device.rotate(Direction::Backward, shape, rotated, &cos, &sin, &positions, &mut x);
    Ok(vec![("forward", turned), ("backward", all(device, &x)?)])
}

fn embed<D: Device>(device: &D, width: usize) -> Outcome {
    let ids = device.indices(&[3, 1, 3, 0, 9, 9, 3])?;
    let table = of_type(device, &values(1, 10 * width, 2.0), Element::BF16)?;
    let mut y = given(device, &vec![0.0; 7 * width])?;
    device.embed(&ids, &table, width, 2.0, &mut y);
    let dy = given(device, &values(2, 7 * width, 1.0))?;
    let mut d_table = of_type(device, &values(3, 10 * width, 1.0), Element::F32)?;
    device.embed_backward(&ids, &dy, width, 2.0, &mut d_table);
    let mut rounded = given(device, &values(3, 10 * width, 1.0))?;
    device.embed_backward(&ids, &dy, width, 2.0, &mut rounded);
    Ok(vec![
        ("y", all(device, &y)?),
        ("d_table", all(device, &d_table)?),
        ("d_table rounded", all(device, &rounded)?),
    ])
}

fn linear<D: Device>(device: &D, product: Product, weights: Element) -> Outcome {
    let Product { rows, inputs, outputs, .. } = product;
    let x = given(device, &values(1, rows * inputs, 2.0))?;
    let w = of_type(device, &values(2, outputs * inputs, 1.0), weights)?;
    let bias = of_type(device, &values(3, outputs, 1.0), weights)?;
    let dy = given(device, &values(4, rows * outputs, 1.0))?;
    let plain = Product { scale: 1.0, ..product };
    let mut y = given(device, &vec![0.0; rows * outputs])?;
    device.linear(plain, &x, &w, Some(&bias), &mut y, Accumulate::Overwrite);
    let first = all(device, &y)?;
    device.linear(product, &x, &w, None, &mut y, Accumulate::Add);
    let mut onto = given(device, &vec![f32::NAN; rows * outputs])?;
    device.linear_onto(product, &x, &w, None, &dy, &mut onto);
    let mut dx = given(device, &values(5, rows * inputs, 1.0))?;
    device.linear_backward_input(product, &dy, &w, &mut dx, Accumulate::Add);
    let mut dw = of_type(device, &values(6, outputs * inputs, 1.0), Element::F32)?;
    let mut d_bias = of_type(device, &values(7, outputs, 1.0), Element::F32)?;
    device.linear_backward_weight(product, &dy, &x, &mut dw, Some(&mut d_bias));
    let mut cleared = of_type(device, &vec![f32::NAN; outputs * inputs], Element::F32)?;
    device.fill(&mut cleared, 0.0);
    device.linear_backward_weight(product, &dy, &x, &mut cleared, None);
    let mut rounded = given(device, &values(6, outputs * inputs, 1.0))?;
    device.linear_backward_weight(product, &dy, &x, &mut rounded, None);
    Ok(vec![
        ("y", first),
        ("y added", all(device, &y)?),
        ("y onto", all(device, &onto)?),
        ("dx", all(device, &dx)?),
        ("dw", all(device, &dw)?),
        ("dw alone", all(device, &cleared)?),
        ("dw rounded", all(device, &rounded)?),
        ("d_bias", all(device, &d_bias)?),
    ])
}

fn attend<D: Device>(device: &D, attention: Attention, documents: &[Range<usize>]) -> Outcome {
    let Attention { heads, key_heads, width, .. } = attention;
    let rows = documents.last().map_or(0, |document| document.end);
    let spans: Vec<Span> =
        documents.iter().map(|rows| Span { queries: rows.clone(), keys: rows.clone() }).collect();
    let (many, few) = (rows * heads * width, rows * key_heads * width);
    let q = given(device, &values(1, many, 2.0))?;
    let k = given(device, &values(2, few, 2.0))?;
    let v = given(device, &values(3, few, 1.0))?;
    let dy = given(device, &values(4, many, 1.0))?;
    let mut y = given(device, &vec![f32::NAN; many])?;
    let mut lse = device.zeros(rows * heads, Element::F32)?;
    device.attention(attention, &spans, &q, &k, &v, &mut y, &mut lse);
    let mut dq = given(device, &vec![f32::NAN; many])?;
    let mut dk = given(device, &vec![f32::NAN; few])?;
    let mut dv = given(device, &vec![f32::NAN; few])?;
    device.attention_backward(attention, &spans, &q, &k, &v, &y, &lse, &dy, &mut dq, &mut dk, &mut dv);
    Ok(vec![
        ("y", all(device, &y)?),
        ("lse", all(device, &lse)?),
        ("dq", all(device, &dq)?),
        ("dk", all(device, &dk)?),
        ("dv", all(device, &dv)?),
    ])
}

/// A matrix whose weights are their own master, and one whose weights are split and whose gradient may be rounded, by one call.
fn adamw<D: Device>(device: &D, len: usize) -> Outcome {
    let few = len / 2 + 1;
    let f32s = |seed, len, size| of_type(device, &values(seed, len, size), Element::F32);
    let squares = |seed, len| -> Result<D::Buffer, DeviceError> {
        let squares: Vec<f32> = values(seed, len, 0.1).iter().map(|value| value * value).collect();
        of_type(device, &squares, Element::F32)
    };
    let (gradient, of_split) = (f32s(1, len, 1.0)?, given(device, &values(5, few, 1.0))?);
    let (mut own, mut weights) = (f32s(2, len, 1.0)?, device.zeros(few, Element::BF16)?);
    let mut remainders = device.remainders(few)?;
    device.write_master(&mut weights, Some(&mut remainders), 0, &values(6, few, 1.0))?;
    let (mut first, mut second) = (f32s(3, len, 0.1)?, squares(4, len)?);
    let (mut first_of_split, mut second_of_split) = (f32s(7, few, 0.1)?, squares(8, few)?);
    let mut parameters = [
        ParameterUpdate {
            gradient: &gradient,
            decays: true,
            master: Master::Weights(&mut own),
            moments: MomentsMut::Whole([&mut first, &mut second]),
        },
        ParameterUpdate {
            gradient: &of_split,
            decays: false,
            master: Master::Split(&mut weights, &mut remainders),
            moments: MomentsMut::Whole([&mut first_of_split, &mut second_of_split]),
        },
    ];
    let norm = device.gradient_norm(&[&gradient, &of_split], Some(1.0))?;
    device.adamw(update(3), Some(&norm), &mut parameters);
    Ok(vec![
        ("own", all(device, &own)?),
        ("first", all(device, &first)?),
        ("second", all(device, &second)?),
        ("master", device.read_master(&weights, &remainders, 0..few)?),
        ("weights", all(device, &weights)?),
        ("first of split", all(device, &first_of_split)?),
        ("second of split", all(device, &second_of_split)?),
    ])
}

/// Nothing is changed where the norm of the gradients is not finite.
fn adamw_of_no_number<D: Device>(device: &D, len: usize) -> Outcome {
    let mut gradients = values(1, len, 1.0);
    gradients[len / 2] = f32::NAN;
    let gradient = of_type(device, &gradients, Element::F32)?;
    let [mut own, mut first] =
        [of_type(device, &values(2, len, 1.0), Element::F32)?, device.zeros(len, Element::F32)?];
    let mut second = device.zeros(len, Element::F32)?;
    let norm = device.gradient_norm(&[&gradient], Some(1.0))?;
    let (master, moments) = (Master::Weights(&mut own), MomentsMut::Whole([&mut first, &mut second]));
    device.adamw(
        update(1),
        Some(&norm),
        &mut [ParameterUpdate { gradient: &gradient, decays: true, master, moments }],
    );
    let is_finite = device.read_norm(&norm)?.is_finite();
    Ok(vec![
        ("own", all(device, &own)?),
        ("first", all(device, &first)?),
        ("is finite", vec![f32::from(u8::from(is_finite))]),
    ])
}

/// Some codes are another where a fused multiplication rounds the noise over an edge.
fn adamw8<D: Device>(device: &D, len: usize) -> Outcome {
    let mut weights = device.zeros(len, Element::BF16)?;
    let mut remainders = device.remainders(len)?;
    device.write_master(&mut weights, Some(&mut remainders), 0, &values(2, len, 1.0))?;
    let mut moments = device.moments(len)?;
    for step in 1..4 {
        let gradient = gradient(device, step, len)?;
        let master = Master::Split(&mut weights, &mut remainders);
        let moments = MomentsMut::Eight(&mut moments);
        device.adamw(
            update(step),
            None,
            &mut [ParameterUpdate { gradient: &gradient, decays: true, master, moments }],
        );
    }
    let stored = device.read_moments(&moments)?;
    Ok(vec![
        ("master", device.read_master(&weights, &remainders, 0..len)?),
        ("first scales", stored.first_scales),
        ("second scales", stored.second_scales),
    ])
}

/// In f32, or by turns in the type of activations.
fn gradient<D: Device>(device: &D, step: u64, len: usize) -> Result<D::Buffer, DeviceError> {
    let element = if step.is_multiple_of(2) { device.activation() } else { Element::F32 };
    of_type(device, &values(step, len, 1.0), element)
}

/// In the host's memory, where that is another: in two pieces.
fn adamw8_aside<D: Device>(device: &D, len: usize) -> Outcome {
    let mut weights = of_type(device, &values(2, len, 1.0), Element::F32)?;
    let mut moments = device.moments(len)?;
    let scales = 4 * StoredMoments::scales(len);
    let [first, first_scales, second, second_scales] =
        [len, scales, len, scales].map(|bytes| device.host(bytes));
    let mut hosts = first?.zip(first_scales?).zip(second?.zip(second_scales?));
    for step in 1..3 {
        let gradient = gradient(device, step, len)?;
        match &mut hosts {
            Some(((first, first_scales), (second, second_scales))) => {
                let moments = AsideMoments::Eight([first, first_scales, second, second_scales]);
                let (gradient, weights, master) = (&gradient, &mut weights, None);
                let update = update(step);
                device.adamw_aside(&mut [AsideUpdate { update, gradient, weights, master, moments }])?;
            }
            None => {
                let (master, moments) = (Master::Weights(&mut weights), MomentsMut::Eight(&mut moments));
                let updates = &mut [ParameterUpdate { gradient: &gradient, decays: true, master, moments }];
                device.adamw(update(step), None, updates);
            }
        }
    }
    let codes = match &hosts {
        Some(((first, _), (second, _))) => {
            [first, second].map(|host| device.host_bytes(host).map(<[u8]>::to_vec))
        }
        None => {
            let stored = device.read_moments(&moments)?;
            [Ok(stored.first), Ok(stored.second)]
        }
    };
    let [first, second] = codes;
    // Of what is nearly zero the sign is nobody's.
    let first =
        first?.into_iter().map(|code| f32::from(code & 127) * if code > 127 { -1.0 } else { 1.0 }).collect();
    let second = second?.into_iter().map(f32::from).collect();
    Ok(vec![("weights", all(device, &weights)?), ("first", first), ("second", second)])
}

fn update(step: u64) -> Update {
    Update {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
        gradient_scale: 0.5,
    }
}

fn squares<D: Device>(device: &D, len: usize) -> Outcome {
    let x = of_type(device, &values(1, len, 1.0), Element::F32)?;
    let y = of_type(device, &values(2, 77, 1.0), Element::F32)?;
    let z = given(device, &values(3, len + 2, 1.0))?;
    let norm = device.gradient_norm(&[&x, &y, &z], None)?;
    Ok(vec![("norm", vec![device.read_norm(&norm)? as f32])])
}

fn distances<D: LossDevice>(device: &D, distance: RowDistance) -> Outcome {
    let shape = Rows { rows: 9, width: 300 };
    let mut x = given(device, &values(1, 2700, 1.0))?;
    let target = given(device, &values(2, 2700, 1.0))?;
    let labels = device.indices(&[1, 2, IGNORED, 3, 4, 5, 6, 7, 8])?;
    let mut values = device.zeros(9, Element::F32)?;
    device.distance_rows(distance, shape, 0.5, &labels, &target, &mut x, &mut values);
    Ok(vec![("values", all(device, &values)?), ("gradient", all(device, &x)?)])
}

fn loss<D: LossDevice>(
    device: &D,
    objective: &Objective,
    mode: Mode,
    student: Columns,
    teacher: Columns,
) -> Outcome {
    let rows = 7;
    let mut z = given(device, &values(1, rows * student.stored, 8.0))?;
    let given_teacher = given(device, &values(2, rows * teacher.stored, 8.0))?;
    let is_taught = objective.needs_teacher();
    let labels = device.indices(&[1, 900, IGNORED, 0, 77, 500, 949])?;
    let columns = objective.terms().len() + Column::COUNT;
    let mut measured = device.zeros(rows * columns, Element::F32)?;
    let loss = RowLoss {
        objective,
        rows,
        student,
        teacher: is_taught.then_some(teacher),
        soft_cap: Some(20.0),
        factor: 1.0 / 6.0,
        mode,
    };
    device.loss_rows(loss, &labels, &mut z, is_taught.then_some(&given_teacher), &mut measured);
    Ok(vec![("values", all(device, &measured)?), ("gradient", all(device, &z)?)])
}

/// Fifty columns of each of three rows, and none of a fourth, that the student has for the most part.
fn sparse<D: LossDevice>(
    device: &D,
    objective: &Objective,
    mode: Mode,
    stored: usize,
    (known, temperatures): (Known, &[f32]),
) -> Outcome {
    let student = Columns { stored, valid: stored - 2 };
    let labels = [1, 900, IGNORED, 7];
    let teacher = columns_of_rows(stored, known, temperatures);
    let mut z = given(device, &values(1, 4 * stored, 8.0))?;
    let columns = objective.terms().len() + Column::COUNT;
    let mut measured = device.zeros(4 * columns, Element::F32)?;
    let loss =
        RowLoss { objective, rows: 4, student, teacher: None, soft_cap: Some(20.0), factor: 1.0 / 3.0, mode };
    device.sparse_rows(loss, &labels, (&teacher, &[2, 0, 1, 3]), &mut z, &mut measured)?;
    Ok(vec![("values", all(device, &measured)?), ("gradient", all(device, &z)?)])
}

/// Where sorted probabilities come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Nowhere,
    Logits(usize),
    Known(Tail),
}

/// Rows of which one has no partner.
fn sorted<D: LossDevice>(
    device: &D,
    objective: &Objective,
    mode: Mode,
    stored: usize,
    source: Source,
) -> Outcome {
    let student = Columns { stored, valid: stored - 2 };
    let labels = [1, 900, IGNORED, 7, 300];
    let partners = [Some(2), Some(1), Some(0), None, Some(1)];
    let mut z = given(device, &values(1, 5 * stored, 8.0))?;
    let columns = objective.terms().len() + Column::COUNT;
    let mut measured = device.zeros(5 * columns, Element::F32)?;
    let loss =
        RowLoss { objective, rows: 5, student, teacher: None, soft_cap: Some(20.0), factor: 1.0 / 4.0, mode };
    let (logits, known);
    let teacher = match source {
        Source::Nowhere => None,
        Source::Logits(columns) => {
            logits = given(device, &values(2, 3 * columns, 8.0))?;
            Some(Ranked::Logits(&logits, Columns { stored: columns, valid: columns - 3 }))
        }
        Source::Known(tail) => {
            known = columns_of_rows(stored, Known::Likeliest(tail), &[1.0, 2.0]);
            Some(Ranked::Known(&known))
        }
    };
    let partners = if teacher.is_some() { partners } else { [None; 5] };
    let sorted = SortedRows { partners: &partners, teacher, factor: 1.0 / 3.0 };
    device.sorted_rows(loss, &labels, sorted, &mut z, &mut measured)?;
    Ok(vec![("values", all(device, &measured)?), ("gradient", all(device, &z)?)])
}

fn columns_of_rows(stored: usize, known: Known, temperatures: &[f32]) -> SparseRows {
    let step = stored / 50;
    let ids: Vec<u32> =
        (0..3).flat_map(|row| (0..50).map(move |at| (at * step + 3 * row + 1) as u32)).collect();
    let share = |at: &f32| (at.abs() + 0.1) / 200.0;
    let log_p = values(3, 150, 1.0).iter().map(|value| share(value).ln()).collect();
    SparseRows {
        known,
        columns: stored - 20,
        temperatures: temperatures.to_vec(),
        starts: vec![0, 50, 100, 150, 150],
        ids,
        log_p,
        tails: if known == Known::Drawn {
            vec![]
        } else {
            [0.3, 0.6, 0.2, 0.5, 0.0, 0.1, 1.0, 1.0][..4 * temperatures.len()].to_vec()
        },
        log_sums: vec![3.0, 4.0, 5.0, 6.0],
        entropies: if known == Known::Drawn { vec![2.0; 4] } else { vec![] },
    }
}

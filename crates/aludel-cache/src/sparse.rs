//! Codes rows of some columns: the likeliest tokens, or draws.
//!
//! In: [`SparseRows`] in order. Out: one stream of bits for a record, and back. A row of the likeliest is: how many columns; which;
//! the level of the least likely, by its distance from the row before's; for each column how far its level is above that; for each
//! temperature the level of what all other columns have together; and the log-sum-exp of the logits, where it is stored. What is read
//! sums to 1 at temperature 1 to the last digit, whatever rounding to levels did.

use super::error::Error;
use super::header::{Contents, Header};
use super::levels::Levels;
use super::rows::SparseRows;
use super::sets::Sets;
use aludel_coder::{Decoder, Encoder, Number};

/// Log-sum-exps and entropies are whole numbers of this part of a nat.
const NAT: f64 = 1024.0;

/// Columns of one record: of 131072 rows, 128 each. Rows that are alike take next to no bytes, so that their bytes alone are no bound.
const MOST: usize = 1 << 24;

/// What a record's rows have learned so far.
struct State {
    sets: Sets,
    count: Number,
    floor: Number,
    above: Number,
    tails: Vec<Number>,
    log_sum: Number,
    draws: Number,
    entropy: Number,
    last_floor: i32,
    last_log_sum: i32,
}

impl State {
    fn new(header: &Header) -> Self {
        Self {
            sets: Sets::new(header.vocabulary),
            count: Number::NEW,
            floor: Number::NEW,
            above: Number::NEW,
            tails: vec![Number::NEW; header.temperatures.len()],
            log_sum: Number::NEW,
            draws: Number::NEW,
            entropy: Number::NEW,
            last_floor: 0,
            last_log_sum: 0,
        }
    }
}

/// The bytes of rows.
pub(crate) fn encode(header: &Header, rows: &SparseRows) -> Result<Vec<u8>, Error> {
    check(header, rows)?;
    let (mut state, mut encoder) = (State::new(header), Encoder::new());
    for row in 0..rows.len() {
        let range = rows.range(row);
        let (ids, log_p) = (&rows.ids[range.clone()], &rows.log_p[range]);
        encoder.number(&mut state.count, ids.len() as u32);
        state.sets.encode(&mut encoder, ids);
        match header.contents {
            Contents::TopK { resolution, .. } => {
                let levels = Levels::new(resolution);
                encode_levels(&mut state, &mut encoder, levels, log_p);
                let tails = &rows.tails[row * state.tails.len()..];
                for (number, &tail) in state.tails.iter_mut().zip(tails) {
                    let level = if tail > 0.0 { 1 + levels.of(f64::from(tail.min(1.0)).ln()) } else { 0 };
                    encoder.number(number, level);
                }
            }
            Contents::Sampled { draws, .. } => {
                for &log_share in log_p {
                    let count = (f64::from(log_share).exp() * f64::from(draws)).round();
                    encoder.number(&mut state.draws, (count as u32).max(1) - 1);
                }
                encoder.number(&mut state.entropy, (f64::from(rows.entropies[row]) * NAT).round() as u32);
            }
            _ => return Err(Error::unstorable("rows of some columns in a cache of all")),
        }
        if header.logits {
            let log_sum = (f64::from(rows.log_sums[row]) * NAT).round().clamp(-1e9, 1e9) as i32;
            encoder.signed(&mut state.log_sum, log_sum - state.last_log_sum);
            state.last_log_sum = log_sum;
        }
    }
    Ok(encoder.finish())
}

fn encode_levels(state: &mut State, encoder: &mut Encoder, levels: Levels, log_p: &[f32]) {
    let level = |log_p: f32| levels.of(f64::from(log_p.min(0.0)));
    let Some(floor) = log_p.iter().map(|&log_p| level(log_p)).max() else { return };
    encoder.signed(&mut state.floor, floor as i32 - state.last_floor);
    state.last_floor = floor as i32;
    for &log_p in log_p {
        encoder.number(&mut state.above, floor - level(log_p));
    }
}

/// Refuses what could not be read again.
fn check(header: &Header, rows: &SparseRows) -> Result<(), Error> {
    let count = rows.len();
    let last = rows.ends.last().copied().unwrap_or(0);
    if !rows.ends.is_sorted() || rows.ids.len() != last || rows.log_p.len() != last {
        return Err(Error::unstorable("rows do not end where their columns do"));
    }
    if last > MOST {
        return Err(Error::unstorable(format!(
            "more than {MOST} columns in one record; use shorter sequences"
        )));
    }
    let (is_top, most) = match header.contents {
        Contents::TopK { k, .. } => (true, k),
        Contents::Sampled { draws, .. } => (false, draws),
        _ => return Err(Error::unstorable("rows of some columns in a cache of all")),
    };
    let tails = if is_top { count * header.temperatures.len() } else { 0 };
    let log_sums = if header.logits { count } else { 0 };
    let entropies = if is_top { 0 } else { count };
    if (rows.tails.len(), rows.entropies.len(), rows.log_sums.len()) != (tails, entropies, log_sums) {
        return Err(Error::unstorable("rows without their tails, log-sum-exps or entropies"));
    }
    let numbers = rows.log_p.iter().chain(&rows.tails).chain(&rows.log_sums).chain(&rows.entropies);
    if numbers.into_iter().any(|x| !x.is_finite()) {
        return Err(Error::unstorable("the teacher has NaN or infinite logits"));
    }
    for row in 0..count {
        let ids = &rows.ids[rows.range(row)];
        let ascends = ids.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascends || ids.last().is_some_and(|&id| id >= header.vocabulary) || ids.len() > most as usize {
            return Err(Error::unstorable("columns out of order, out of the vocabulary or too many"));
        }
    }
    Ok(())
}

/// Rows from their bytes; the detail of what is wrong with them otherwise.
pub(crate) fn decode(header: &Header, bytes: &[u8], count: usize) -> Result<SparseRows, &'static str> {
    let (mut state, mut decoder) = (State::new(header), Decoder::new(bytes));
    let mut rows = SparseRows::default();
    let most = match header.contents {
        Contents::TopK { k, .. } => k,
        Contents::Sampled { draws, .. } => draws,
        _ => return Err("it is of another kind than the header says"),
    };
    for _ in 0..count {
        let columns = decoder.number(&mut state.count);
        if columns > most || decoder.is_past_end() {
            return Err("its rows end too early, or have too many columns");
        }
        if columns as usize > MOST - rows.ids.len() {
            return Err("it has more columns than any record");
        }
        state.sets.decode(&mut decoder, columns as usize, &mut rows.ids).ok_or("its columns are none")?;
        match header.contents {
            Contents::TopK { resolution, .. } => {
                decode_levels(&mut state, &mut decoder, Levels::new(resolution), columns, &mut rows)?;
            }
            Contents::Sampled { draws, .. } => {
                decode_draws(&mut state, &mut decoder, draws, columns, &mut rows)?;
            }
            _ => {}
        }
        if header.logits {
            let log_sum = state.last_log_sum.wrapping_add(decoder.signed(&mut state.log_sum));
            state.last_log_sum = log_sum;
            rows.log_sums.push((f64::from(log_sum) / NAT) as f32);
        }
        rows.ends.push(rows.ids.len());
    }
    if decoder.is_at_end() { Ok(rows) } else { Err("its rows do not end where its bytes do") }
}

fn decode_levels(
    state: &mut State,
    decoder: &mut Decoder<'_>,
    levels: Levels,
    columns: u32,
    rows: &mut SparseRows,
) -> Result<(), &'static str> {
    let (mut log_p, mut sum) = (Vec::with_capacity(columns as usize), 0.0);
    if columns > 0 {
        let floor = state.last_floor.wrapping_add(decoder.signed(&mut state.floor));
        state.last_floor = floor;
        for _ in 0..columns {
            let above = decoder.number(&mut state.above);
            let level = i64::from(floor) - i64::from(above);
            let value = levels.log_p(u32::try_from(level).map_err(|_| "a level is below the first")?);
            sum += value.exp();
            log_p.push(value);
        }
    }
    for (at, number) in state.tails.iter_mut().enumerate() {
        let level = decoder.number(number);
        let tail = if level == 0 { 0.0 } else { levels.log_p(level - 1).exp() };
        if at == 0 {
            sum += tail;
            // What is all but certain of columns that were rounded away has no probability at all.
            if sum <= 0.0 {
                return Err("a row has no probability");
            }
        }
        rows.tails.push(if at == 0 { (tail / sum) as f32 } else { tail as f32 });
    }
    let log_sum = sum.ln();
    rows.log_p.extend(log_p.into_iter().map(|value| (value - log_sum) as f32));
    Ok(())
}

fn decode_draws(
    state: &mut State,
    decoder: &mut Decoder<'_>,
    draws: u32,
    columns: u32,
    rows: &mut SparseRows,
) -> Result<(), &'static str> {
    let mut left = draws;
    for _ in 0..columns {
        let count = decoder.number(&mut state.draws).saturating_add(1);
        left = left.checked_sub(count).ok_or("it has more draws than its header says")?;
        rows.log_p.push((f64::from(count) / f64::from(draws)).ln() as f32);
    }
    rows.entropies.push((f64::from(decoder.number(&mut state.entropy)) / NAT) as f32);
    if left == 0 { Ok(()) } else { Err("it has fewer draws than its header says") }
}

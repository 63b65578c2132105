//! Holds AdamW, with f32 and 8-bit moments, to its definition in f64.

use super::reference::adamw;
use crate::element::Element;
use crate::nn::Cpu;
use crate::nn::cpu::buffer::Buffer;
use crate::nn::cpu::testing::*;
use crate::nn::device::{Device, Master, MomentsMut, ParameterUpdate, StoredMoments, Update};

fn update(step: u64) -> Update {
    Update {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
        gradient_scale: 0.5,
    }
}

/// An update of one parameter that is its own master.
fn whole(cpu: &Cpu, update: Update, gradient: &Buffer, [master, first, second]: [&mut Buffer; 3]) {
    let (master, moments) = (Master::Weights(master), MomentsMut::Whole([first, second]));
    cpu.adamw(update, None, &mut [ParameterUpdate { gradient, decays: true, master, moments }]);
}

/// The same with moments in eight bits.
fn eight(
    cpu: &Cpu,
    update: Update,
    gradient: &Buffer,
    master: &mut Buffer,
    moments: &mut crate::nn::Moments,
) {
    let (master, moments) = (Master::Weights(master), MomentsMut::Eight(moments));
    cpu.adamw(update, None, &mut [ParameterUpdate { gradient, decays: true, master, moments }]);
}

/// Weights in bf16 with what they lack take the same steps, to the bit, as f32 does, beside a parameter that does not decay.
#[test]
fn split_masters_are_f32() {
    let cpu = cpu(2);
    let len = 40_001;
    let start = Element::BF16.decode(&Element::BF16.encode(&values(len, 1)));
    let mut master = floats(&cpu, &start);
    let mut weights = buffer(&cpu, &start, Element::BF16);
    let mut remainders = cpu.remainders(len).unwrap();
    let mut still = floats(&cpu, &start);
    let mut states = [(); 6].map(|()| floats(&cpu, &vec![0.0; len]));
    for step in 1..=5 {
        let gradient = floats(&cpu, &values(len, 100 + step));
        let none = floats(&cpu, &vec![0.0; len]);
        let [a, b, c, d, e, f] = &mut states;
        whole(&cpu, update(step), &gradient, [&mut master, a, b]);
        let split = ParameterUpdate {
            gradient: &gradient,
            decays: true,
            master: Master::Split(&mut weights, &mut remainders),
            moments: MomentsMut::Whole([c, d]),
        };
        let other = ParameterUpdate {
            gradient: &none,
            decays: false,
            master: Master::Weights(&mut still),
            moments: MomentsMut::Whole([e, f]),
        };
        cpu.adamw(update(step), None, &mut [split, other]);
    }
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let got = cpu.read_master(&weights, &remainders, 0..len).unwrap();
    assert_eq!(bits(&got), bits(&read(&cpu, &master)));
    assert_eq!(read(&cpu, &still), start);
    let rounded = Element::BF16.decode(&Element::BF16.encode(&got));
    let weights = read(&cpu, &weights);
    assert!(
        weights
            .iter()
            .zip(&rounded)
            .zip(&got)
            .all(|((weight, rounded), value)| weight == rounded || value.to_bits() & 0xffff == 0x8000)
    );
    // What is restored is what was saved.
    let mut again = (buffer(&cpu, &start, Element::BF16), cpu.remainders(len).unwrap());
    cpu.write_master(&mut again.0, Some(&mut again.1), 0, &got[..7]).unwrap();
    cpu.write_master(&mut again.0, Some(&mut again.1), 7, &got[7..]).unwrap();
    assert_eq!(bits(&cpu.read_master(&again.0, &again.1, 0..len).unwrap()), bits(&got));
    assert_eq!(read(&cpu, &again.0), weights);
}

#[test]
fn twenty_steps_are_the_reference() {
    let cpu = cpu(2);
    for len in [0, 1, 41, 401, 40_001] {
        let start = values(len, 1);
        let mut exact: Vec<[f64; 3]> = start.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
        let mut master = floats(&cpu, &start);
        let [mut first, mut second] = [(); 2].map(|()| floats(&cpu, &vec![0.0; len]));
        for step in 1..=20 {
            let gradient = values(len, 100 + step);
            let given = floats(&cpu, &gradient);
            whole(&cpu, update(step), &given, [&mut master, &mut first, &mut second]);
            for (exact, &g) in exact.iter_mut().zip(&gradient) {
                *exact = adamw(&update(step), f64::from(g), *exact);
            }
        }
        let part = |i: usize| exact.iter().map(|e| e[i]).collect::<Vec<_>>();
        assert_close("w", &read(&cpu, &master), &part(0), 1e-6);
        // A single moment may be what is left of larger ones.
        assert_close("m", &read(&cpu, &first), &part(1), if len == 1 { 1e-5 } else { 1e-6 });
        assert_close("v", &read(&cpu, &second), &part(2), 1e-6);
    }
}

/// Gradients are clipped by the norm of all, and one that is not finite changes nothing.
#[test]
fn gradients_are_clipped_as_the_norm_says() {
    let cpu = cpu(1);
    let gradient = floats(&cpu, &[3.0, -4.0]);
    let after = |norm: Option<&crate::nn::device::KnownNorm>, gradient: &Buffer| {
        let mut master = floats(&cpu, &[1.0, 1.0]);
        let [mut first, mut second] = [(); 2].map(|()| floats(&cpu, &[0.0; 2]));
        let (own, moments) = (Master::Weights(&mut master), MomentsMut::Whole([&mut first, &mut second]));
        let parameter = ParameterUpdate { gradient, decays: true, master: own, moments };
        cpu.adamw(update(1), norm, &mut [parameter]);
        [read(&cpu, &master), read(&cpu, &first)].concat()
    };
    let norm = |gradient: &Buffer, limit| cpu.gradient_norm(&[gradient], limit).unwrap();
    let clipped = norm(&gradient, Some(1.0));
    assert_eq!((cpu.read_norm(&clipped).unwrap(), clipped.scale), (5.0, (1.0 / (5.0 + 1e-6)) as f32));
    let scaled = floats(&cpu, &[3.0, -4.0].map(|g: f32| g * clipped.scale));
    assert_close(
        "clipped",
        &after(Some(&clipped), &gradient),
        &after(None, &scaled).iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
        1e-6,
    );
    for limit in [None, Some(6.0)] {
        assert_eq!(after(Some(&norm(&gradient, limit)), &gradient), after(None, &gradient));
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let gradient = floats(&cpu, &[1.0, bad]);
        assert_eq!(after(Some(&norm(&gradient, Some(1.0))), &gradient), [1.0, 1.0, 0.0, 0.0]);
    }
}

#[test]
fn the_first_step_moves_by_the_learning_rate() {
    let cpu = cpu(1);
    let mut master = floats(&cpu, &[1.0, 1.0, 1.0]);
    let [mut first, mut second] = [(); 2].map(|()| floats(&cpu, &[0.0; 3]));
    let u = Update { weight_decay: 0.0, ..update(1) };
    whole(&cpu, u, &floats(&cpu, &[3.0, -1e-3, 0.0]), [&mut master, &mut first, &mut second]);
    assert_close("w", &read(&cpu, &master), &[0.99, 1.01, 1.0], 1e-6);
}

/// One step from zero leaves moments that are known: their codes are within the stated error, and right on average.
#[test]
fn stored_moments_have_the_stated_error() {
    let cpu = cpu(1);
    let len = 40_001;
    let gradient = values(len, 1);
    let mut master = floats(&cpu, &vec![0.0; len]);
    let mut moments = cpu.moments(len).unwrap();
    eight(&cpu, update(1), &floats(&cpu, &gradient), &mut master, &mut moments);
    // A step without a gradient multiplies moments by the betas: what it moves tells what was stored.
    let stored = cpu.read_moments(&moments).unwrap();
    let (mut sum, mut count) = ([0.0; 2], 0.0);
    for (i, &g) in gradient.iter().enumerate() {
        let g = 0.5 * f64::from(g);
        let exact = [0.1 * g, 0.001 * g * g];
        let code = |code: u8, largest: u32, scale: f32| {
            let magnitude = u32::from(code) & largest;
            let value = if magnitude == 0 {
                0.0
            } else {
                // Eight codes to an octave, straight between powers of two.
                let below = f64::from(largest - magnitude);
                let octave = (below / 8.0).ceil();
                (1.0 + (8.0 * octave - below) / 8.0) * (-octave).exp2()
            };
            value * f64::from(scale) * if u32::from(code) > largest { -1.0 } else { 1.0 }
        };
        let got = [
            code(stored.first[i], 127, stored.first_scales[i / 256]),
            code(stored.second[i], 255, stored.second_scales[i / 256]),
        ];
        let smallest = f64::from(stored.first_scales[i / 256]) * (-15.0f64).exp2();
        for (which, (got, exact)) in got.into_iter().zip(exact).enumerate() {
            if exact.abs() > smallest {
                let error = got / exact - 1.0;
                assert!(error.abs() <= 0.125 + 1e-4, "{which}[{i}]: {got} for {exact}");
                sum[which] += error;
            }
        }
        count += 1.0;
    }
    for sum in sum {
        assert!((sum / count).abs() < 1e-3, "{} on average", sum / count);
    }
}

/// The mean of a slow second moment stays right, where rounding to nearest would leave it where it was.
#[test]
fn slow_moments_move() {
    let cpu = cpu(1);
    let len = 4096;
    let mut master = floats(&cpu, &vec![0.0; len]);
    let mut moments = cpu.moments(len).unwrap();
    // One element of each block holds the scale; the others begin at 1 and have gradients of 0.
    let gradient = |first: f32, rest: f32| -> Vec<f32> {
        (0..len).map(|i| if i % 256 == 0 { first } else { rest }).collect()
    };
    let u = |step| Update { gradient_scale: 1.0, weight_decay: 0.0, ..update(step) };
    eight(&cpu, u(1), &floats(&cpu, &gradient(4.0, 1.0)), &mut master, &mut moments);
    for step in 2..=401 {
        eight(&cpu, u(step), &floats(&cpu, &gradient(4.0, 0.0)), &mut master, &mut moments);
    }
    let stored = cpu.read_moments(&moments).unwrap();
    let decoded: f64 = stored
        .second
        .iter()
        .enumerate()
        .filter(|(i, _)| i % 256 != 0)
        .map(|(i, &code)| {
            let bits = (u32::from(code) + (1.0f32.to_bits() >> 20) - 255) << 20;
            f64::from(f32::from_bits(bits) * stored.second_scales[i / 256])
        })
        .sum();
    let mean = decoded / (len - len / 256) as f64;
    let expected = 0.001 * 0.999f64.powi(400);
    assert!((mean / expected - 1.0).abs() < 0.02, "{mean} for {expected}");
}

/// Both kinds of moments bring a noisy quadratic to the same place.
#[test]
fn eight_bits_lead_to_the_same_minimum() {
    let cpu = cpu(1);
    let len = 1000;
    let target = values(len, 1);
    let mut ends = Vec::new();
    for is_small in [false, true] {
        let mut master = floats(&cpu, &vec![0.0; len]);
        let [mut first, mut second] = [(); 2].map(|()| floats(&cpu, &vec![0.0; len]));
        let mut moments = cpu.moments(len).unwrap();
        for step in 1..=600 {
            let noise = values(len, 1000 + step);
            let w = read(&cpu, &master);
            let gradient: Vec<f32> =
                (0..len).map(|i| (w[i] - target[i] + 0.1 * noise[i]) * (1.0 + (i % 50) as f32)).collect();
            let u = Update {
                learning_rate: 2e-2 * (1.0 - step as f32 / 601.0),
                weight_decay: 0.0,
                ..update(step)
            };
            let gradient = floats(&cpu, &gradient);
            if is_small {
                eight(&cpu, u, &gradient, &mut master, &mut moments);
            } else {
                whole(&cpu, u, &gradient, [&mut master, &mut first, &mut second]);
            }
        }
        let off: f32 = read(&cpu, &master).iter().zip(&target).map(|(w, t)| (w - t).powi(2)).sum();
        ends.push(off / len as f32);
    }
    assert!(ends[0] < 1e-3 && ends[1] < 1.5 * ends[0] + 1e-5, "{ends:?}");
}

#[test]
fn restored_moments_go_on_with_the_same_bits() {
    let cpu = cpu(2);
    let len = 40_001;
    let run = |steps: std::ops::RangeInclusive<u64>, w: &[f32], from: Option<StoredMoments>| {
        let mut moments = match from {
            Some(stored) => cpu.restore_moments(len, &stored).unwrap().unwrap(),
            None => cpu.moments(len).unwrap(),
        };
        let mut master = floats(&cpu, w);
        for step in steps {
            eight(&cpu, update(step), &floats(&cpu, &values(len, step)), &mut master, &mut moments);
        }
        (read(&cpu, &master), cpu.read_moments(&moments).unwrap())
    };
    let through = run(1..=6, &values(len, 99), None);
    let (w, stored) = run(1..=3, &values(len, 99), None);
    assert!(run(4..=6, &w, Some(stored.clone())) == through);
    assert!(cpu.restore_moments(len + 1, &stored).unwrap().is_none());
    assert!(cpu.restore_moments(len - 1, &stored).unwrap().is_none());
}

#[test]
fn threads_change_no_bit() {
    let len = 100_003;
    assert_same_bits(|cpu| {
        let gradient = floats(cpu, &values(len, 1));
        let [mut a, mut b] = [(); 2].map(|()| floats(cpu, &values(len, 2)));
        let [mut first, mut second] = [(); 2].map(|()| floats(cpu, &vec![0.0; len]));
        let mut moments = cpu.moments(len).unwrap();
        for step in 1..=2 {
            whole(cpu, update(step), &gradient, [&mut a, &mut first, &mut second]);
            eight(cpu, update(step), &gradient, &mut b, &mut moments);
        }
        let scales = cpu.read_moments(&moments).unwrap().first_scales;
        [a, first, second, b].iter().map(|b| read(cpu, b)).chain([scales]).collect()
    });
}

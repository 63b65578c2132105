//! Holds attention and its gradient to scores that are written out in f64.

use super::reference;
use crate::nn::cpu::Cpu;
use crate::nn::cpu::testing::*;
use crate::nn::device::{Attention, Device, Span};

struct Case {
    attention: Attention,
    spans: Vec<Span>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dy: Vec<f32>,
}

/// (heads, key heads, width)
type Shape = (usize, usize, usize);

fn case((heads, key_heads, width): Shape, spans: &[(usize, usize)], factor: f32) -> Case {
    let (mut queries, mut keys) = (0, 0);
    let spans: Vec<Span> = spans
        .iter()
        .map(|&(q, k)| {
            (queries, keys) = (queries + q, keys + k);
            Span { queries: queries - q..queries, keys: keys - k..keys }
        })
        .collect();
    let scale = (width as f32).powf(-0.5);
    let scaled = |len, seed| values(len, seed).iter().map(|x| factor * x).collect();
    Case {
        attention: Attention { heads, key_heads, width, scale, window: None, soft_cap: None },
        spans,
        q: scaled(queries * heads * width, 1),
        k: scaled(keys * key_heads * width, 2),
        v: values(keys * key_heads * width, 3),
        dy: values(queries * heads * width, 4),
    }
}

/// Every kind of mask over every kind of span.
fn variants(mut c: Case) -> Vec<Case> {
    let mut all = Vec::new();
    for window in [None, Some(1), Some(5), Some(100), Some(5000)] {
        for soft_cap in [None, Some(2.0)] {
            c.attention.window = window;
            c.attention.soft_cap = soft_cap;
            all.push(Case {
                attention: c.attention,
                spans: c.spans.clone(),
                q: c.q.clone(),
                k: c.k.clone(),
                v: c.v.clone(),
                dy: c.dy.clone(),
            });
        }
    }
    all
}

fn forward(cpu: &Cpu, c: &Case) -> [Vec<f32>; 2] {
    let [q, k, v] = [&c.q, &c.k, &c.v].map(|x| floats(cpu, x));
    let (mut y, mut lse) = (poison(cpu, c.q.len()), poison(cpu, c.q.len() / c.attention.width));
    cpu.attention(c.attention, &c.spans, &q, &k, &v, &mut y, &mut lse);
    [y, lse].map(|b| read(cpu, &b))
}

fn backward(cpu: &Cpu, c: &Case) -> [Vec<f32>; 3] {
    let [y, lse] = forward(cpu, c);
    let [q, k, v, y, lse, dy] = [&c.q, &c.k, &c.v, &y, &lse, &c.dy].map(|x| floats(cpu, x));
    let (mut dq, mut dk, mut dv) = (poison(cpu, c.q.len()), poison(cpu, c.k.len()), poison(cpu, c.v.len()));
    cpu.attention_backward(c.attention, &c.spans, &q, &k, &v, &y, &lse, &dy, &mut dq, &mut dk, &mut dv);
    [dq, dk, dv].map(|b| read(cpu, &b))
}

#[test]
fn forward_is_the_reference() {
    let cpu = cpu(2);
    let spans: [&[(usize, usize)]; 6] = [
        &[(1, 1)],
        &[(41, 41)],
        &[(401, 401)],
        &[(1, 300), (5, 133)],
        &[(3, 3), (0, 0), (130, 130)],
        &[(0, 7)],
    ];
    for shape in [(1, 1, 1), (9, 3, 64), (4, 1, 41)] {
        for spans in spans {
            for c in variants(case(shape, spans, 1.0)) {
                let [y, lse] = forward(&cpu, &c);
                let (q, k, v) = (wide(&c.q), wide(&c.k), wide(&c.v));
                let (exact, exact_lse) = reference::attention(&c.attention, &c.spans, &q, &k, &v);
                assert_close("y", &y, &exact, 2e-6);
                assert_close("lse", &lse, &exact_lse, 2e-6);
            }
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let cpu = cpu(1);
    for c in variants(case((2, 1, 32), &[(200, 200)], 30.0)) {
        let [y, lse] = forward(&cpu, &c);
        let (q, k, v) = (wide(&c.q), wide(&c.k), wide(&c.v));
        let (exact, exact_lse) = reference::attention(&c.attention, &c.spans, &q, &k, &v);
        // Scores of some thousands have an error of some 1e-4, and the softmax passes it on.
        assert_close("y", &y, &exact, 2e-3);
        assert_close("lse", &lse, &exact_lse, 1e-4);
        assert!(backward(&cpu, &c).iter().flatten().all(|x| x.is_finite()));
    }
}

#[test]
fn gradients_are_differences_of_the_reference() {
    let cpu = cpu(2);
    for (shape, spans) in [
        ((1, 1, 1), &[(3, 3)][..]),
        ((4, 2, 8), &[(5, 5), (0, 0), (1, 1), (7, 7)][..]),
        ((2, 2, 5), &[(3, 11), (2, 9)][..]),
    ] {
        for c in variants(case(shape, spans, 1.0)) {
            let [dq, dk, dv] = backward(&cpu, &c);
            let (q, k, v, dy) = (wide(&c.q), wide(&c.k), wide(&c.v), wide(&c.dy));
            let loss = |q: &[f64], k: &[f64], v: &[f64]| {
                dot(&reference::attention(&c.attention, &c.spans, q, k, v).0, &dy)
            };
            if c.attention.window != Some(1) {
                assert_gradient("dq", &dq, &q, |q| loss(q, &k, &v), 2e-5);
                assert_gradient("dk", &dk, &k, |k| loss(&q, k, &v), 2e-5);
            } else {
                // One key: the probability is 1 whatever the score.
                assert!(dq.iter().chain(&dk).all(|x| x.abs() < 1e-5));
            }
            assert_gradient("dv", &dv, &v, |v| loss(&q, &k, v), 2e-5);
        }
    }
}

/// Tiles: the gradient over spans longer than several tiles, along one direction of every input.
#[test]
fn gradients_hold_across_tiles() {
    let cpu = cpu(2);
    for c in variants(case((3, 1, 16), &[(150, 310), (201, 201)], 1.0)) {
        let [dq, dk, dv] = backward(&cpu, &c);
        let (q, k, v, dy) = (wide(&c.q), wide(&c.k), wide(&c.v), wide(&c.dy));
        let directions = [(&q, 7), (&k, 8), (&v, 9)].map(|(x, seed)| wide(&values(x.len(), seed)));
        let moved = |x: &[f64], by: &[f64], h: f64| -> Vec<f64> {
            x.iter().zip(by).map(|(x, by)| x + h * by).collect()
        };
        let loss = |h: [f64; 3]| {
            let q = moved(&q, &directions[0], h[0]);
            let k = moved(&k, &directions[1], h[1]);
            let v = moved(&v, &directions[2], h[2]);
            dot(&reference::attention(&c.attention, &c.spans, &q, &k, &v).0, &dy)
        };
        for (which, got) in [&dq, &dk, &dv].into_iter().enumerate() {
            let mut h = [0.0; 3];
            h[which] = 1e-5;
            let expected = (loss(h) - loss(h.map(|h| -h))) / 2e-5;
            let along = dot(&wide(got), &directions[which]);
            let size = got.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1.0);
            assert!((along - expected).abs() < 2e-5 * size, "{which}: {along} for {expected}");
        }
    }
}

#[test]
fn spans_may_lie_in_any_order() {
    let cpu = cpu(2);
    let mut c = case((2, 1, 8), &[(5, 9), (7, 7)], 1.0);
    let (forward_once, backward_once) = (forward(&cpu, &c), backward(&cpu, &c));
    c.spans.reverse();
    assert_eq!(forward(&cpu, &c), forward_once);
    assert_eq!(backward(&cpu, &c), backward_once);
}

#[test]
fn threads_change_no_bit() {
    let c = case((9, 3, 64), &[(300, 300), (101, 257)], 1.0);
    assert_same_bits(|cpu| forward(cpu, &c).into_iter().chain(backward(cpu, &c)).collect());
}

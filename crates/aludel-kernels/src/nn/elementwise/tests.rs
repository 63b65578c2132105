//! Tests copies, sums and scalings of buffers.

use half::{bf16, f16};

use super::cpu::sum_of_squares;
use crate::element::Element;
use crate::nn::cpu::testing::*;
use crate::nn::device::{Device, DeviceError, Rows};

const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::BF16];
const LENGTHS: [usize; 5] = [0, 1, 41, 401, 300_007];

fn rounded(element: Element, x: f32) -> f32 {
    match element {
        Element::F32 => x,
        Element::F16 => f16::from_f32(x).to_f32(),
        Element::BF16 => bf16::from_f32(x).to_f32(),
    }
}

#[test]
fn copies_convert_between_all_types() {
    let cpu = cpu(2);
    for len in LENGTHS {
        for from in ELEMENTS {
            for to in ELEMENTS {
                let x = values(len, 1);
                let source = buffer(&cpu, &x, from);
                let mut copy = buffer(&cpu, &vec![f32::NAN; len], to);
                cpu.copy(&source, &mut copy);
                let expected: Vec<f32> = x.iter().map(|&x| rounded(to, rounded(from, x))).collect();
                assert_eq!(read(&cpu, &copy), expected);
                assert_eq!((cpu.len(&copy), cpu.element(&copy)), (len, to));
            }
        }
    }
}

#[test]
fn rows_and_parts_go_where_they_belong() {
    let cpu = cpu(1);
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let from = buffer(&cpu, &x, Element::BF16);
    let mut to = floats(&cpu, &[-1.0; 15]);
    cpu.copy_rows(&from, 1, &mut to, 3, Rows { rows: 2, width: 3 });
    let mut expected = [-1.0; 15];
    expected[9..].copy_from_slice(&x[3..9]);
    assert_eq!(read(&cpu, &to), expected);
    cpu.write(&mut to, 13, &[7.0, 8.0]).unwrap();
    assert_eq!(cpu.read(&to, 12..15).unwrap(), [6.0, 7.0, 8.0]);
}

#[test]
fn fill_add_and_scale() {
    let cpu = cpu(2);
    for len in LENGTHS {
        for element in ELEMENTS {
            let mut filled = cpu.zeros(len, element).unwrap();
            assert!(read(&cpu, &filled).iter().all(|&x| x == 0.0));
            cpu.fill(&mut filled, 0.3);
            assert!(read(&cpu, &filled).iter().all(|&x| x == rounded(element, 0.3)));
            let (x, y) = (values(len, 1), values(len, 2));
            let mut sum = floats(&cpu, &y);
            cpu.add(&buffer(&cpu, &x, element), -0.7, &mut sum);
            cpu.scale(&mut sum, 3.0);
            let expected: Vec<f64> = x
                .iter()
                .zip(&y)
                .map(|(&x, &y)| 3.0 * (f64::from(y) - f64::from(0.7f32) * f64::from(rounded(element, x))))
                .collect();
            assert_close("sum", &read(&cpu, &sum), &expected, 2e-7);
        }
    }
}

#[test]
fn sums_of_squares_are_in_double_precision() {
    let cpu = cpu(2);
    for len in LENGTHS {
        for element in ELEMENTS {
            let x = buffer(&cpu, &values(len, 1), element);
            let exact: f64 = read(&cpu, &x).iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let got = sum_of_squares(&cpu, x.values());
            assert!((got - exact).abs() <= 1e-12 * exact, "{got} for {exact}");
        }
    }
    assert!(sum_of_squares(&cpu, floats(&cpu, &[1.0, f32::NAN]).values()).is_nan());
    assert_eq!(sum_of_squares(&cpu, floats(&cpu, &[1e30; 3]).values()), 3.0 * f64::from(1e30f32).powi(2));
}

#[test]
fn threads_change_no_bit() {
    let x = values(300_007, 1);
    assert_same_bits(|cpu| {
        let b = floats(cpu, &x);
        let sum = sum_of_squares(cpu, b.values()).to_bits();
        let mut y = floats(cpu, &x);
        cpu.add(&b, 0.1, &mut y);
        vec![vec![f32::from_bits(sum as u32), f32::from_bits((sum >> 32) as u32)], read(cpu, &y)]
    });
}

#[test]
fn memory_that_does_not_exist_is_an_error() {
    let cpu = cpu(1);
    for len in [usize::MAX, 1 << 60] {
        assert!(matches!(cpu.zeros(len, Element::F32), Err(DeviceError::OutOfMemory { .. })));
        assert!(matches!(cpu.moments(len), Err(DeviceError::OutOfMemory { .. })));
    }
}

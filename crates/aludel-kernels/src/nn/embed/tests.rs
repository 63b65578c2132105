//! Tests looking rows up and adding their gradients.

use crate::element::Element;
use crate::nn::cpu::testing::*;
use crate::nn::device::Device;

#[test]
fn rows_are_looked_up_in_every_type() {
    let cpu = cpu(2);
    for element in [Element::F32, Element::F16, Element::BF16] {
        for (rows, width, vocabulary) in [(1, 1, 1), (41, 401, 7), (0, 3, 2), (1271, 300, 97)] {
            let table = buffer(&cpu, &values(vocabulary * width, 1), element);
            let ids: Vec<u32> = (0..rows).map(|t| (t * t % vocabulary) as u32).collect();
            let mut y = poison(&cpu, rows * width);
            cpu.embed(&cpu.indices(&ids).unwrap(), &table, width, 1.5, &mut y);
            let table = read(&cpu, &table);
            let expected: Vec<f32> = ids
                .iter()
                .flat_map(|&id| &table[id as usize * width..(id as usize + 1) * width])
                .map(|x| 1.5 * x)
                .collect();
            assert_eq!(read(&cpu, &y), expected);
        }
    }
}

#[test]
fn gradients_of_repeated_rows_add_up() {
    let cpu = cpu(2);
    let (rows, width, vocabulary) = (401, 300, 7);
    let ids: Vec<u32> = (0..rows).map(|t| (t * t % 5) as u32).collect();
    let (dy, before) = (values(rows * width, 1), values(vocabulary * width, 2));
    let mut d_table = floats(&cpu, &before);
    cpu.embed_backward(&cpu.indices(&ids).unwrap(), &floats(&cpu, &dy), width, 0.5, &mut d_table);
    let mut expected = wide(&before);
    for (id, dy) in ids.iter().zip(dy.chunks(width)) {
        for (e, dy) in expected[*id as usize * width..].iter_mut().zip(dy) {
            *e += 0.5 * f64::from(*dy);
        }
    }
    assert_close("d_table", &read(&cpu, &d_table), &expected, 1e-6);
}

#[test]
fn the_gradient_is_a_difference_of_the_look_up() {
    let cpu = cpu(1);
    let (ids, width) = ([2u32, 0, 2], 3);
    let (table, dy) = (values(4 * width, 1), values(3 * width, 2));
    let mut d_table = floats(&cpu, &[0.0; 12]);
    cpu.embed_backward(&cpu.indices(&ids).unwrap(), &floats(&cpu, &dy), width, 2.0, &mut d_table);
    let dy = wide(&dy);
    let loss = |table: &[f64]| -> f64 {
        ids.iter()
            .zip(dy.chunks(width))
            .map(|(&id, dy)| 2.0 * dot(&table[id as usize * width..][..width], dy))
            .sum()
    };
    assert_gradient("d_table", &read(&cpu, &d_table), &wide(&table), loss, 1e-6);
}

#[test]
fn threads_change_no_bit() {
    let ids: Vec<u32> = (0..1271).map(|t| t % 7).collect();
    let (table, dy) = (values(7 * 576, 1), values(1271 * 576, 2));
    assert_same_bits(|cpu| {
        let at = cpu.indices(&ids).unwrap();
        let mut y = poison(cpu, dy.len());
        let mut d_table = floats(cpu, &table);
        cpu.embed(&at, &d_table, 576, 3.0, &mut y);
        cpu.embed_backward(&at, &floats(cpu, &dy), 576, 1.0, &mut d_table);
        vec![read(cpu, &y), read(cpu, &d_table)]
    });
}

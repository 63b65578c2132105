//! Interprets a pickle without running it.
//!
//! In: bytes, untrusted. Out: the values that they describe, in one flat list in which values refer to each other by
//! position. So nothing is copied when a pickle mentions a value twice, nothing recurses, and memory is at most a fixed
//! multiple of the pickle's length, which is bounded. Calls are not made: those of [`super::allowed`] become values here, all
//! others are refused.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use safetensors::Dtype;

use super::allowed::{Known, find};
use super::{Fault, REMEDY, damaged, unsupported};

/// The position of a value.
pub(super) type Id = u32;

/// A value of Python's, as far as state dicts have them.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Flag(bool),
    Number(i64),
    Text(Box<str>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Mapping(Vec<(Id, Id)>),
    Known(Known),
    Storage(Storage),
    Tensor(Tensor),
    /// A value that says nothing about weights: a fraction, bytes, a set, a device.
    Ignored,
}

/// A storage that is kept outside of the pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    /// The text of its key.
    pub(super) key: Id,
    /// The type of its elements; `None` for bytes.
    pub(super) dtype: Option<Dtype>,
    /// Its number of elements, as the pickle has it.
    pub(super) elements: i64,
}

/// A view of a storage. What it refers to is not copied, and not checked, until the tensor is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    pub(super) storage: Id,
    pub(super) dtype: Dtype,
    /// The number of elements before the first.
    pub(super) offset: Id,
    /// A tuple of numbers.
    pub(super) shape: Id,
    /// A tuple of numbers.
    pub(super) strides: Id,
}

/// What a pickle describes.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the whole is.
    pub(super) root: Id,
}

impl Pickle {
    /// Reads one pickle, up to and with its end.
    pub(super) fn read(input: &mut dyn BufRead) -> Result<Self, Fault> {
        let input = input.take(MOST_BYTES);
        let values = vec![Value::None, Value::Flag(false), Value::Flag(true), Value::Tuple(Box::default())];
        let mut machine =
            Machine { input, values, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = machine.run()?;
        Ok(Self { values: machine.values, root })
    }

    /// The value at a position of this pickle.
    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// Every value, those that nothing refers to any more among them.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    /// The text at a position.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        text(self.value(id))
    }
}

/// Values that are there from the beginning, so that a byte that asks for one takes no room.
const NONE: Id = 0;
const EMPTY_TUPLE: Id = 3;

/// A hundred thousand tensors take about half of it.
const MOST_BYTES: u64 = 32 << 20;

struct Machine<'i> {
    input: std::io::Take<&'i mut dyn BufRead>,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Lengths of the stack where a collection begins.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, Fault> {
        loop {
            let [opcode] = self.bytes()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            0x80 => self.bytes::<1>().map(drop), // PROTO
            0x95 => self.bytes::<8>().map(drop), // FRAME
            b'N' => self.push_id(NONE),
            0x89 => self.push_id(1), // NEWFALSE
            0x88 => self.push_id(2), // NEWTRUE
            b')' => self.push_id(EMPTY_TUPLE),
            b'K' => self.bytes::<1>().and_then(|byte| self.push(Value::Number(byte[0].into()))),
            b'M' => self.bytes().and_then(|bytes| self.push(Value::Number(u16::from_le_bytes(bytes).into()))),
            b'J' => self.bytes().and_then(|bytes| self.push(Value::Number(i32::from_le_bytes(bytes).into()))),
            0x8a => self.long(),
            b'G' => self.bytes::<8>().and_then(|_| self.push(Value::Ignored)), // BINFLOAT
            b'X' | b'T' => self.length_of_4().and_then(|length| self.text(length)),
            0x8c | b'U' => self.bytes::<1>().and_then(|length| self.text(length[0].into())),
            0x8d => self.bytes().and_then(|length| self.text(u64::from_le_bytes(length))),
            b'B' => self.length_of_4().and_then(|length| self.skip(length)), // BINBYTES
            b'C' => self.bytes::<1>().and_then(|length| self.skip(length[0].into())),
            b'}' => self.push(Value::Mapping(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            0x8f => self.push(Value::Ignored), // EMPTY_SET
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b't' => self.since_mark().and_then(|items| self.push(Value::Tuple(items.into()))),
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84)),
            b'0' => self.pop().map(drop),                       // POP
            b'1' => self.since_mark().map(drop),                // POP_MARK
            b'2' => self.top().and_then(|id| self.push_id(id)), // DUP
            b'a' => self.pop().and_then(|item| self.append(&[item])),
            b'e' => self.since_mark().and_then(|items| self.append(&items)),
            0x90 => self.since_mark().map(drop), // ADDITEMS, to a set
            b's' => self.pop_pair().and_then(|(key, value)| self.set(&[key, value])),
            b'u' => self.since_mark().and_then(|items| self.set(&items)),
            b'q' => self.bytes::<1>().and_then(|index| self.put(index[0].into())),
            b'r' => self.bytes().and_then(|index| self.put(u32::from_le_bytes(index))),
            0x94 => u32::try_from(self.memo.len())
                .map_or_else(|_| damaged("its memo is full"), |index| self.put(index)),
            b'h' => self.bytes::<1>().and_then(|index| self.take_out(index[0].into())),
            b'j' => self.bytes().and_then(|index| self.take_out(u32::from_le_bytes(index))),
            b'c' => self.global(),
            0x93 => self.stack_global(),
            b'R' | 0x81 => self.call(), // REDUCE, NEWOBJ
            b'b' => self.build(),
            b'Q' => self.storage(),
            other => unsupported(format!(
                "its pickle has the operation {other:#04x}, which no state dict needs; {REMEDY}"
            )),
        }
    }

    fn bytes<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Fault> {
        let mut bytes = [0; LENGTH];
        match self.input.read_exact(&mut bytes) {
            Err(_) if self.input.limit() == 0 => {
                unsupported(format!("its pickle is longer than {MOST_BYTES} bytes; {REMEDY}"))
            }
            result => Ok(result.map(|()| bytes)?),
        }
    }

    fn length_of_4(&mut self) -> Result<u64, Fault> {
        self.bytes().map(|length| u32::from_le_bytes(length).into())
    }

    /// The next bytes; no more is allocated than there is.
    fn many(&mut self, length: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        (&mut self.input).take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == length { Ok(bytes) } else { damaged("its pickle is cut off in a text") }
    }

    fn text(&mut self, length: u64) -> Result<(), Fault> {
        match String::from_utf8(self.many(length)?) {
            Ok(text) => self.push(Value::Text(text.into())),
            Err(_) => damaged("its pickle has a text that is not UTF-8"),
        }
    }

    fn skip(&mut self, length: u64) -> Result<(), Fault> {
        self.many(length)?;
        self.push(Value::Ignored)
    }

    /// A whole number of any length; one of more than 64 bits is no part of a state dict.
    fn long(&mut self) -> Result<(), Fault> {
        let [length] = self.bytes()?;
        let bytes = self.many(length.into())?;
        let sign = bytes.last().map_or(0, |last| if last & 0x80 == 0 { 0 } else { 0xff });
        let mut wide = [sign; 8];
        match wide.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(&bytes);
                self.push(Value::Number(i64::from_le_bytes(wide)))
            }
            None => self.push(Value::Ignored),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        // As many values as the bytes that ask for them, so it cannot overflow.
        let id = self.values.len() as Id;
        self.values.push(value);
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Fault> {
        self.stack.push(id);
        Ok(())
    }

    /// What was pushed after the latest mark can be taken; what was before cannot.
    fn pop(&mut self) -> Result<Id, Fault> {
        let least = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= least => Ok(id),
            _ => damaged("its pickle takes a value that is not there"),
        }
    }

    fn pop_pair(&mut self) -> Result<(Id, Id), Fault> {
        let last = self.pop()?;
        Ok((self.pop()?, last))
    }

    fn top(&self) -> Result<Id, Fault> {
        self.stack.last().map_or_else(|| damaged("its pickle reads a value that is not there"), |&id| Ok(id))
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => damaged("its pickle ends a collection that it has not begun"),
        }
    }

    fn tuple(&mut self, length: usize) -> Result<(), Fault> {
        let mut items = vec![NONE; length];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push(Value::Tuple(items.into()))
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Fault> {
        let list = self.top()?;
        match &mut self.values[list as usize] {
            Value::List(list) => list.extend_from_slice(items),
            Value::Ignored => {}
            _ => return damaged("its pickle appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), Fault> {
        let mapping = self.top()?;
        match (&mut self.values[mapping as usize], items.as_chunks::<2>()) {
            (Value::Mapping(mapping), (pairs, [])) => {
                mapping.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            (Value::Ignored, _) => Ok(()),
            _ => damaged("its pickle sets a key of what is no mapping"),
        }
    }

    fn put(&mut self, index: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn take_out(&mut self, index: u32) -> Result<(), Fault> {
        match self.memo.get(&index) {
            Some(&id) => self.push_id(id),
            None => damaged("its pickle refers to a value that it has not remembered"),
        }
    }

    fn line(&mut self) -> Result<String, Fault> {
        let mut line = Vec::new();
        (&mut self.input).take(LONGEST_NAME).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return damaged("its pickle has a name without an end");
        }
        String::from_utf8(line).or_else(|_| damaged("its pickle has a name that is not UTF-8"))
    }

    fn global(&mut self) -> Result<(), Fault> {
        let (module, name) = (self.line()?, self.line()?);
        self.push(Value::Known(find(&module, &name)?))
    }

    fn stack_global(&mut self) -> Result<(), Fault> {
        let (module, name) = self.pop_pair()?;
        match (text(&self.values[module as usize]), text(&self.values[name as usize])) {
            (Some(module), Some(name)) => {
                let known = find(module, name)?;
                self.push(Value::Known(known))
            }
            _ => damaged("its pickle asks for a name that is no text"),
        }
    }

    /// What a call would give.
    fn call(&mut self) -> Result<(), Fault> {
        let (callable, arguments) = self.pop_pair()?;
        let Value::Known(known) = self.values[callable as usize] else {
            return damaged("its pickle calls what cannot be called");
        };
        let Value::Tuple(arguments) = &self.values[arguments as usize] else {
            return damaged("its pickle calls with arguments that are no tuple");
        };
        match (known, &**arguments) {
            (Known::Parameter, &[same, ..]) | (Known::Size, &[same]) => self.push_id(same),
            // The function, the class, the function's arguments and the attributes.
            (Known::FromType, &[function, class, arguments, _]) => {
                if !matches!(self.values[class as usize], Value::Known(Known::TensorClass)) {
                    return damaged("its pickle makes a tensor of what is no class of tensors");
                }
                self.push_id(function)?;
                self.push_id(arguments)?;
                match self.values[function as usize] {
                    Value::Known(Known::Rebuild { .. } | Known::Parameter) => self.call(),
                    _ => damaged("its pickle makes a tensor by what is no function for tensors"),
                }
            }
            (known, arguments) => {
                let value = self.result(known, arguments)?;
                self.push(value)
            }
        }
    }

    fn result(&self, known: Known, arguments: &[Id]) -> Result<Value, Fault> {
        match (known, arguments) {
            (Known::OrderedDict, []) => Ok(Value::Mapping(Vec::new())),
            (Known::Ignored, _) => Ok(Value::Ignored),
            (
                Known::Rebuild { has_dtype: false },
                &[storage, offset, shape, strides, _, _, ref metadata @ ..],
            ) => self.tensor(storage, None, [offset, shape, strides], metadata),
            (
                Known::Rebuild { has_dtype: true },
                &[storage, offset, shape, strides, _, _, dtype, ref metadata @ ..],
            ) => match self.values[dtype as usize] {
                Value::Known(Known::Type(dtype)) => {
                    self.tensor(storage, Some(dtype), [offset, shape, strides], metadata)
                }
                _ => damaged("its pickle has a tensor whose type is none"),
            },
            _ => damaged("its pickle calls a function with other arguments than it takes"),
        }
    }

    fn tensor(
        &self,
        storage: Id,
        dtype: Option<Dtype>,
        [offset, shape, strides]: [Id; 3],
        metadata: &[Id],
    ) -> Result<Value, Fault> {
        let Value::Storage(stored) = &self.values[storage as usize] else {
            return damaged("its pickle has a tensor of what is no storage");
        };
        let Some(dtype) = dtype.or(stored.dtype) else {
            return damaged("its pickle has a tensor of no type");
        };
        let is_empty = |&id: &Id| match &self.values[id as usize] {
            Value::None => true,
            Value::Mapping(pairs) => pairs.is_empty(),
            _ => false,
        };
        if !metadata.iter().all(is_empty) {
            let detail = "it has a tensor that is a conjugate or a negative of what is stored";
            return unsupported(format!("{detail}; {REMEDY}"));
        }
        Ok(Value::Tensor(Tensor { storage, dtype, offset, shape, strides }))
    }

    /// Attributes that are set on an object say nothing about its values.
    fn build(&mut self) -> Result<(), Fault> {
        self.pop()?;
        let object = self.top()?;
        match self.values[object as usize] {
            Value::Mapping(_) | Value::Tensor(_) | Value::Ignored => Ok(()),
            _ => damaged("its pickle sets attributes of what has none"),
        }
    }

    /// A reference to something outside of the pickle: always a storage, as the word, its class, its key, its place, its number
    /// of elements, and in older files the part of another that it is.
    fn storage(&mut self) -> Result<(), Fault> {
        let reference = self.pop()?;
        let Value::Tuple(parts) = &self.values[reference as usize] else {
            return damaged("its pickle refers to what is no storage");
        };
        let &[word, class, key, _, elements, ref view @ ..] = &**parts else {
            return damaged("its pickle refers to a storage with too few parts");
        };
        let is_storage = text(&self.values[word as usize]) == Some("storage");
        let Value::Known(Known::Storage(dtype)) = self.values[class as usize] else {
            return damaged("its pickle refers to a storage of no class");
        };
        if !is_storage || text(&self.values[key as usize]).is_none() {
            return damaged("its pickle refers to a storage without a key");
        }
        if !view.iter().all(|&view| matches!(self.values[view as usize], Value::None)) {
            return unsupported(format!("it has a storage that is a part of another; {REMEDY}"));
        }
        let Value::Number(elements) = self.values[elements as usize] else {
            return damaged("its pickle refers to a storage without a size");
        };
        self.push(Value::Storage(Storage { key, dtype, elements }))
    }
}

/// The text that a value is.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

const LONGEST_NAME: u64 = 1024;

//! Protocol buffers as far as profiles need them: a message is its fields, one after the other
//! (protobuf.dev, "Encoding").

/// The bytes of a message, as fields are added.
#[derive(Clone, Debug, Default)]
pub(super) struct Message(Vec<u8>);

/// Wire types.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;

impl Message {
    /// The message so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A number. Zero is what a field is that is missing.
    pub(super) fn number(&mut self, field: u64, number: u64) -> &mut Self {
        if number != 0 {
            self.always(field, number);
        }
        self
    }

    /// A number that is also written if it is 0.
    pub(super) fn always(&mut self, field: u64, number: u64) -> &mut Self {
        varint(field << 3 | VARINT, &mut self.0);
        varint(number, &mut self.0);
        self
    }

    /// Text or bytes.
    pub(super) fn text(&mut self, field: u64, text: impl AsRef<[u8]>) -> &mut Self {
        let text = text.as_ref();
        varint(field << 3 | LENGTH, &mut self.0);
        varint(text.len() as u64, &mut self.0);
        self.0.extend_from_slice(text);
        self
    }

    /// A message within it.
    pub(super) fn message(&mut self, field: u64, message: &Self) -> &mut Self {
        self.text(field, &message.0)
    }

    /// More fields.
    pub(super) fn append(&mut self, fields: &Self) -> &mut Self {
        self.0.extend_from_slice(&fields.0);
        self
    }

    /// Numbers, packed.
    pub(super) fn numbers(&mut self, field: u64, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        let mut packed = Vec::new();
        numbers.into_iter().for_each(|number| varint(number, &mut packed));
        self.text(field, packed)
    }
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of protobuf.dev's page "Encoding".
    #[test]
    fn as_documented() {
        let mut message = Message::default();
        message.number(1, 150).text(2, "testing").numbers(6, [3, 270, 86_942]).number(7, 0);
        let mut expected = vec![0x08, 0x96, 0x01, 0x12, 0x07];
        expected.extend_from_slice(b"testing");
        expected.extend([0x32, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05]);
        assert_eq!(message.bytes(), expected);
        let mut outer = Message::default();
        outer.message(3, Message::default().always(1, 0));
        assert_eq!(outer.bytes(), [0x1a, 0x02, 0x08, 0x00]);
        let mut largest = Message::default();
        largest.number(1, u64::MAX);
        assert_eq!(largest.bytes().len(), 11);
    }
}

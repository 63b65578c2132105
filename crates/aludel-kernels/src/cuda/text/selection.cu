// The words of a selection: what is sought, where there is room, and what is known so far. The host fills in the first
// ten; where nothing is sampled also the bracket.

#define COUNT 0
#define OF 1
#define SAMPLE 2
#define SAMPLED 3
#define KEYS_INSIDE 4
#define CAPACITY 5
#define TIES 6
#define CHUNKS 7
#define CUT 8
#define FLAG 9
#define ABOVE 10
#define INSIDE 11
#define BRACKET 12
#define COUNTED 13
#define COUNTED_HIGH 14
#define LOCATED 15
#define SELECTION 16

#define NOWHERE 0xffffffffu
#define COUNTED_VALUES 3

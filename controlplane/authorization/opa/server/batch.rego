# Many questions in one request. It is put into the bundle beside the rules; a question whose decision is undefined
# has no answer, and one whose rule fails fails them all: they are then asked one by one.
package stockade.batch

import rego.v1

answers[index] := answer if {
	some index, asked in input
	answer := data.runtime[asked.about].decision with input as asked.input
}

package tokenfile

import (
	"fmt"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	const text = "t1,jane,7\nt2,joe,8,\"dev,ops\",ignored\n,nobody,0\nt1,june,9\n"
	tokens, err := Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{"t1": "{june 9 [] map[]} true", "t2": "{joe 8 [dev ops] map[]} true", "": "{  [] map[]} false", "t3": "{  [] map[]} false"} {
		id, ok, err := tokens.AuthenticateToken(t.Context(), token, nil)
		if got := fmt.Sprint(id.User, ok); got != want || err != nil {
			t.Errorf("%q: %s %v", token, got, err)
		}
	}
	for text, want := range map[string]string{
		"t1,jane": "it must have at least 3 columns (token, user name, user uid), found 2", `t1,"jane`: "parse error on line 1",
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
)

// Sizes of a plot, in pixels.
const (
	plotWidth  = 900
	labelWidth = 380
	barWidth   = 400
	barHeight  = 11
	rowHeight  = 34
)

var colours = map[string]string{skiff: "#1f6feb", upstream: "#b0b7c0"}

// plot is an SVG of the figures that both systems have: two bars each, on a
// scale of their own, with the range as a thin line.
func (r *result) plot() []byte {
	var rows bytes.Buffer
	y := 40
	for _, f := range r.Figures {
		a, one := f.spread(skiff)
		b, two := f.spread(upstream)
		most := max(a.high, b.high)
		if !one || !two || most <= 0 {
			continue
		}
		fmt.Fprintf(&rows, `<text x="%d" y="%d" text-anchor="end">%s, %s</text>`+"\n", labelWidth-8, y+15, html.EscapeString(f.Name), f.Unit)
		for i, s := range []spread{a, b} {
			top := y + i*(barHeight+1)
			scale := func(v float64) float64 { return labelWidth + barWidth*v/most }
			fmt.Fprintf(&rows, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, labelWidth, top, scale(s.median)-labelWidth, barHeight, colours[[]string{skiff, upstream}[i]])
			fmt.Fprintf(&rows, `<path d="M%.1f %d H%.1f" stroke="#333"/>`, scale(s.low), top+barHeight/2, scale(s.high))
			fmt.Fprintf(&rows, `<text x="%.1f" y="%d">%s</text>`+"\n", scale(s.high)+6, top+barHeight-1, number(s.median))
		}
		fmt.Fprintf(&rows, `<text x="%d" y="%d" text-anchor="end" font-weight="bold">%s</text>`+"\n", plotWidth-8, y+15, f.ratioText())
		y += rowHeight
	}
	var svg bytes.Buffer
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", plotWidth, y)
	fmt.Fprintf(&svg, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="22" font-size="14" font-weight="bold">%s</text>`+"\n", labelWidth, r.Suite)
	for i, system := range []string{skiff, upstream} {
		fmt.Fprintf(&svg, `<rect x="%d" y="12" width="11" height="11" fill="%s"/><text x="%d" y="22">%s</text>`+"\n", labelWidth+120+i*90, colours[system], labelWidth+136+i*90, system)
	}
	svg.Write(rows.Bytes())
	svg.WriteString("</svg>\n")
	return svg.Bytes()
}

package mutants

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// Kinds of drawn mutants.
const (
	negated  = "negated condition"
	dropped  = "dropped statement"
	zeroed   = "zero return"
	boundary = "boundary"
	swapped  = "swapped and/or"
)

// candidate is a mutant that may be drawn.
type candidate struct {
	function *function
	kind     string
	span
	to     string
	number int               // counts equal changes of one function from 0
	place  [sha256.Size]byte // in the order of a seed
}

func (c candidate) text() string {
	kind := c.kind
	if c.number > 0 {
		kind = fmt.Sprintf("%s #%d", kind, c.number+1)
	}
	return describe(kind+":", c.function.at(c.span), c.to)
}

func (c candidate) changed() changed {
	return changed{symbol: c.function.symbol, text: c.text(), replacements: []replacement{{c.function, c.span, c.to}}}
}

// order sorts candidates by a hash of the seed and of what they change, so that a change of one
// function leaves the others in their order.
func order(all []candidate, seed uint64) {
	for i, c := range all {
		all[i].place = sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%s", seed, c.function.symbol, c.text()))
	}
	slices.SortFunc(all, func(a, b candidate) int { return bytes.Compare(a.place[:], b.place[:]) })
}

// candidates returns every mutant of some functions.
func candidates(functions []*function) (all []candidate) {
	for _, f := range functions {
		all = append(all, f.candidates()...)
	}
	return all
}

func (f *function) candidates() []candidate {
	c := collector{function: f, seen: map[string]int{}}
	c.body(f.decl.Body, f.decl.Type)
	return c.all
}

// collector finds the candidates of one function.
type collector struct {
	function *function
	all      []candidate
	seen     map[string]int
}

func (c *collector) add(kind string, s span, to string) {
	one := candidate{function: c.function, kind: kind, span: s, to: to}
	key := one.text()
	one.number = c.seen[key]
	c.seen[key]++
	c.all = append(c.all, one)
}

// body looks at the body of a function or a function literal with this type.
func (c *collector) body(body *ast.BlockStmt, of *ast.FuncType) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			c.body(n.Body, n.Type)
			return false
		case *ast.IfStmt:
			if passesOn(n) || onlyReports(n) {
				return n.Init != nil // the call in it may hold a function
			}
			c.negate(n.Cond)
			if n.Else == nil {
				c.drop(n)
			}
		case *ast.SwitchStmt:
			c.cases(n)
		case *ast.ReturnStmt:
			c.result(n, of)
		case *ast.BinaryExpr:
			c.operator(n)
		case *ast.ExprStmt, *ast.AssignStmt, *ast.IncDecStmt, *ast.BranchStmt:
			if droppable(n.(ast.Stmt)) {
				c.drop(n)
			}
			return !isReport(n)
		case *ast.DeferStmt:
			return false
		}
		return true
	})
}

// passesOn reports whether a statement only returns an error that a call without a check of its own
// may have returned: `if err != nil { return …, err }`. Reading and writing fail so.
func passesOn(n *ast.IfStmt) bool {
	cond, ok := n.Cond.(*ast.BinaryExpr)
	if !ok || n.Init != nil || cond.Op != token.NEQ || !isErr(cond.X) || len(n.Body.List) != 1 {
		return false
	}
	back, ok := n.Body.List[0].(*ast.ReturnStmt)
	return ok && (len(back.Results) == 0 || mentionsErr(back.Results[len(back.Results)-1]))
}

// onlyReports reports whether a statement only writes a log or a metric.
func onlyReports(n *ast.IfStmt) bool {
	return n.Else == nil && !slices.ContainsFunc(n.Body.List, func(s ast.Stmt) bool { return !isReport(s) })
}

func isErr(e ast.Expr) bool {
	ident, ok := e.(*ast.Ident)
	return ok && strings.HasSuffix(strings.ToLower(ident.Name), "err")
}

func mentionsErr(e ast.Expr) (found bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		if x, ok := n.(ast.Expr); ok && isErr(x) {
			found = true
		}
		return !found
	})
	return found
}

func (c *collector) negate(cond ast.Expr) {
	c.add(negated, c.function.span(cond), "!("+c.function.at(c.function.span(cond))+")")
}

// cases negates the conditions of a switch without a value.
func (c *collector) cases(n *ast.SwitchStmt) {
	if n.Tag != nil {
		return
	}
	for _, clause := range n.Body.List {
		for _, cond := range clause.(*ast.CaseClause).List {
			c.negate(cond)
		}
	}
}

func (c *collector) drop(n ast.Node) { c.add(dropped, c.function.span(n), "") }

// droppable reports whether a statement can be left out and decides something.
func droppable(s ast.Stmt) bool {
	switch s := s.(type) {
	case *ast.ExprStmt:
		return !isReport(s)
	case *ast.AssignStmt:
		if s.Tok == token.DEFINE {
			return false
		}
		blank, ok := s.Lhs[0].(*ast.Ident)
		return !ok || blank.Name != "_"
	case *ast.BranchStmt:
		return s.Tok == token.CONTINUE || s.Tok == token.BREAK
	}
	return true
}

// reports are parts of the names of calls that write a log or a metric, lock, or release what is no longer used.
var reports = []string{"log.", "metrics.", "Warn", "panic", "close", "Close", "Lock", "Unlock", "RLock", "RUnlock", "Wait", "cancel", "clear"}

// isReport reports whether a statement is a call that decides nothing.
func isReport(n ast.Node) bool {
	s, ok := n.(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := s.X.(*ast.CallExpr)
	if !ok {
		return false
	}
	name := nameOf(call.Fun)
	return slices.ContainsFunc(reports, func(part string) bool {
		if strings.HasSuffix(part, ".") {
			return strings.Contains("."+name, "."+part)
		}
		return name == part || strings.HasSuffix(name, "."+part)
	})
}

// nameOf returns the dotted name of what is called.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return nameOf(e.X) + "." + e.Sel.Name
	case *ast.CallExpr:
		return nameOf(e.Fun)
	case *ast.IndexExpr:
		return nameOf(e.X)
	}
	return ""
}

// result returns zero values in place of what a function returns, and negates a comparison that it returns.
func (c *collector) result(n *ast.ReturnStmt, of *ast.FuncType) {
	if len(n.Results) == 0 || of.Results == nil {
		return
	}
	if logical(n.Results[0]) && len(n.Results) == 1 {
		c.negate(n.Results[0])
	}
	if !slices.ContainsFunc(n.Results, decides) {
		return
	}
	var zeros []string
	for _, field := range of.Results.List {
		for range max(len(field.Names), 1) {
			zeros = append(zeros, "*new("+c.function.at(c.function.span(field.Type))+")")
		}
	}
	c.add(zeroed, c.function.span(n), "return "+strings.Join(zeros, ", "))
}

func logical(e ast.Expr) bool {
	b, ok := e.(*ast.BinaryExpr)
	return ok && (b.Op == token.LAND || b.Op == token.LOR || comparison(b.Op))
}

func comparison(op token.Token) bool {
	return op == token.EQL || op == token.NEQ || other[op] != token.ILLEGAL
}

// decides reports whether a result is more than a zero value or an error that is passed on.
func decides(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Value != "0" && e.Value != `""`
	case *ast.Ident:
		return e.Name != "nil" && e.Name != "false" && !isErr(e)
	case *ast.CompositeLit:
		return len(e.Elts) > 0
	case *ast.CallExpr:
		return !mentionsErr(e)
	}
	return true
}

// other are the comparisons that differ at the boundary.
var other = map[token.Token]token.Token{token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR}

// operator moves the boundary of a comparison, or swaps && and ||.
func (c *collector) operator(n *ast.BinaryExpr) {
	kind, to := boundary, other[n.Op]
	switch n.Op {
	case token.LAND:
		kind, to = swapped, token.LOR
	case token.LOR:
		kind, to = swapped, token.LAND
	}
	if to == token.ILLEGAL {
		return
	}
	// Operands in brackets keep the meaning of the rest.
	left, right := c.function.at(c.function.span(n.X)), c.function.at(c.function.span(n.Y))
	if kind == swapped {
		left, right = "("+left+")", "("+right+")"
	}
	c.add(kind, c.function.span(n), bracket(kind)+left+" "+to.String()+" "+right+closing(kind))
}

// bracket and closing keep a swapped operator together within a longer condition.
func bracket(kind string) string {
	if kind == swapped {
		return "("
	}
	return ""
}

func closing(kind string) string {
	if kind == swapped {
		return ")"
	}
	return ""
}

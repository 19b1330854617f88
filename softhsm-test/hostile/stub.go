package main

import "context"

func (s *stage) programs(context.Context) error { return nil }
